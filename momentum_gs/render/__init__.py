"""Floor 5: renders a model (anchors with a decoder, or splats) as a camera sees it."""
