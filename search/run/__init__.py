"""Runs a search: workers on this machine or a Ray cluster, finalists, and the report."""
