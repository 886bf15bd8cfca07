"""Floor 3: scenes on disk, images, the block grid, the partition file and the synthetic city."""
