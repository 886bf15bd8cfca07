"""A browser for the viewer's tests: Debian's Chromium, which draws WebGL in software."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip
PATIENCE = 120.0
"""Seconds after which what a test waits for is taken not to come; on a quiet machine it takes a few."""


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Any, width: int, height: int) -> Iterator[Any]:
    """A page with storage of its own."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(1000 * PATIENCE)
    yield page
    page.close()


def wait(page: Any, condition: Callable[[], object]) -> None:
    """Until the condition holds; the page goes on meanwhile."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what the test waits for does not come"
        page.wait_for_timeout(50)


def pixels(page: Any) -> np.ndarray:
    """What the page shows, RGB from 0 to 1."""
    data = np.frombuffer(page.screenshot(), np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[..., ::-1] / 255
