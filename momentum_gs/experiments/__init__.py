"""Floor 9: settings chosen for a scene and a machine, and sweeps over settings and seeds."""
