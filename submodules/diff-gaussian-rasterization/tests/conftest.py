"""Lets the tests import rasterizer_scenes.py from any working directory; registers the marker of GPU tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: runs on a GPU, and is skipped where there is none")
    config.addinivalue_line("markers", "slow: takes seconds on a quiet machine")
