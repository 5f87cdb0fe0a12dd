"""Intervals calibrated on held-out groups, and draws with correlated residuals."""
