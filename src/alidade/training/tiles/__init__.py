"""Aligned training tiles: every sensor over one ground square, each at its own ground resolution."""
