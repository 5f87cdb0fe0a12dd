"""Numerics: arrays in, arrays out; nothing here knows AnnData or SpatialData."""
