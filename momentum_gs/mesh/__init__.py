"""Floor 8: triangle meshes of a model's surface, and their scores against a reference."""
