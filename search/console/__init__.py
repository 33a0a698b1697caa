"""Terminal output: progress, status, signals."""
