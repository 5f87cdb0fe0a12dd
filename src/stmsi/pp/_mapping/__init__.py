"""Parts of `pp.map_to_spots`: where spots and aligned pixels lie, and what each pixel counts with."""
