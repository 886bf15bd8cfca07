"""Floor 7: merges trained blocks into one model."""
