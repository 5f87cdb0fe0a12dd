"""Scores, one number per metabolite: presence, intensity, maps, structure, and how far a score can be trusted."""
