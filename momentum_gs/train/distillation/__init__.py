"""Teachers that differ, and students that learn from them: Distilled-3DGS in the loop of this program."""
