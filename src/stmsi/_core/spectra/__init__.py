"""Spectra: bytes of imzML files, common ions, statistics of pixels, limits of detection."""
