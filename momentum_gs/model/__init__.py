"""Floor 4: anchors, the decoder and the Gaussians that they become."""
