"""Networks as optimal control problems. Not in this version: see the changelog."""
