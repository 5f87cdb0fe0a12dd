"""Molecules: formulas, adducts, masses, the table of core metabolites, and ions matched between lists."""
