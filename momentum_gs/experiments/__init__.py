"""Floor 9: chooses settings for a scene and a machine, runs training, pipelines and sweeps."""
