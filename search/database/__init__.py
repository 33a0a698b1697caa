"""The database of studies: its URL, connections, retries, and Optuna's tables."""
