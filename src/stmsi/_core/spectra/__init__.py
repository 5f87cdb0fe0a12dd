"""Spectra: bytes of imzML files, peaks, common ions, statistics of pixels, limits of detection."""
