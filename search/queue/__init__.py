"""Trials as tickets that workers claim, hold by a lease, and lose when they die."""
