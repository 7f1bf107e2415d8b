"""Rows x seeds x label budgets, each cell a run."""
