"""Floor 8: finds faults of a scene, its settings or the machine, and estimates what training will need."""
