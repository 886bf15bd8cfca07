"""Floor 6: training of blocks and of the coarse model."""
