"""A study: its definition, its search space, what is stored with it, and where its files are."""
