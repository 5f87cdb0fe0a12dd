"""Fits whose spots stay on disk: the same numbers as those in memory, a block of spots at a time."""
