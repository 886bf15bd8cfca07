"""Floor 7: trained blocks become one model."""
