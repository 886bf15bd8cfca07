"""Floor 3: scenes on disk, images, the block grid and the synthetic city."""
