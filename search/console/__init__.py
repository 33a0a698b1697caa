"""What a terminal shows: progress, status, signals."""
