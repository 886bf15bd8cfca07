"""Lets the tests import rasterizer_scenes.py from any working directory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
