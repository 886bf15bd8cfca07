"""Training of planar surfaces (``model.surface=planar``): the loss terms on depth and normals."""
