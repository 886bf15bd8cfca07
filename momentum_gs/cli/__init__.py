"""Floor 8: what a person runs, one file a verb."""
