"""Floor 7: files that other programs open."""
