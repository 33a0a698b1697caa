"""A study: its definition, search space, database records, and file locations."""
