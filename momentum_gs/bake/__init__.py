"""Anchors and their decoder become explicit Gaussians."""
