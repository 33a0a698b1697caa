"""One worker process: its loop, a trial, sampling, and what becomes of checkpoints."""
