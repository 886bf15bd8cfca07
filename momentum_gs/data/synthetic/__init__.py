"""The synthetic city: its geometry, its shading and the survey that images it."""
