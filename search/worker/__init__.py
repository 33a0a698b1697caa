"""One worker process: its loop, a trial, sampling, and the retention of checkpoints."""
