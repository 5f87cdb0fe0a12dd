"""Which pixels a spot covers, with what area, and their values per spot."""
