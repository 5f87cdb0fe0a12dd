"""Peaks of spectra: the bins of profiles, summits over the noise, centres, and the error of masses."""
