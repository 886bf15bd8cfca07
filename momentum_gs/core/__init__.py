"""Floor 1: types, geometry, image math, rows, communication, errors and log."""
