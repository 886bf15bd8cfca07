"""Densification and pruning of anchors and of Gaussians."""
