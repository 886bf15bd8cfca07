"""Makes COLMAP scenes, which training reads, from images or from the data sets of other projects."""
