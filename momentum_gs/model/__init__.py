"""Floor 4: anchors, explicit Gaussians, the decoder, and the Gaussians decoded from anchors."""
