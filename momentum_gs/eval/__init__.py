"""Floor 7: renders of a split and the numbers that describe them."""
