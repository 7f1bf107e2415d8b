"""A run on disk and on devices."""
