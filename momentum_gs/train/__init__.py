"""Floor 6: what makes a model."""
