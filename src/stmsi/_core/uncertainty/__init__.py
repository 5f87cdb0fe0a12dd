"""Intervals calibrated on held-out groups, and draws whose residuals hang together."""
