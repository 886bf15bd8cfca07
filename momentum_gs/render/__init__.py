"""Floor 5: anchors, decoder and camera in, image out."""
