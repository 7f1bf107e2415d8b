"""Slices from disk to batches."""
