"""Runs the stages of a config."""
