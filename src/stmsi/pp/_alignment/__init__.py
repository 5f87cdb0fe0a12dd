"""Parts of `pp.align`: what it reads of a section, and the ways to find an alignment."""
