"""Per-image corrections that a run learns: of colours and of poses."""
