"""The static page: a model, its cameras and its cells in one HTML file that opens without a server."""
