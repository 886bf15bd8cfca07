"""File formats of explicit Gaussians, and models that other programs trained."""
