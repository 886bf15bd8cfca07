"""Floor 9: shows runs, exports and running training in a browser."""
