"""Scans, masks and scores; numpy only."""
