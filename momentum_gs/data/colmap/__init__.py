"""COLMAP models: text and binary files, read into cameras and points."""
