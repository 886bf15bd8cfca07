"""Floor 8: what is wrong with a scene, its settings or the machine, and what training will take."""
