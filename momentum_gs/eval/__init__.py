"""Floor 7: renders the views of a split and scores them."""
