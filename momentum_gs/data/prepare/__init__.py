"""From images, or another project's scene, to a COLMAP scene that training reads."""
