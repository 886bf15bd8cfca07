"""Mean squared distance of every point to its three nearest neighbours: ``simple_knn._C.distCUDA2``."""
