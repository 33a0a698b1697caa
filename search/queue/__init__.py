"""The queue: tickets (queued trials), their leases, and the choice of the next trial."""
