"""Numerics: arrays in, arrays out. Nothing here knows AnnData or SpatialData, and nothing imports from the rooms above."""
