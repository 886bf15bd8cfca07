"""Floor 6: cutting a scene into blocks and giving each block its cameras."""
