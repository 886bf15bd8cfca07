"""The viewer in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser_page, pixels, wait
from tiny_run import make_config, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import dump_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import write_json
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.io import model_folder
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

viser = pytest.importorskip("viser", reason="viser is not installed")

from momentum_gs.viewer.image_renderer import render  # noqa: E402 (needs viser)
from momentum_gs.viewer.run import open_run  # noqa: E402
from momentum_gs.viewer.server import ViewerServer  # noqa: E402

pytestmark = pytest.mark.slow
WIDTH, HEIGHT = 640, 480
"""Small, as the browser draws in software."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained, merged and scored run of four blocks."""
    folder = tmp_path_factory.mktemp("viewer")
    config = make_config(write_tiny_scene(folder / "scene"), folder / "out", "steps=40", "growth.until=30")
    table = write_table(config)
    Training(config, load_scene(config.scene), table, LocalComm(), torch.device("cpu")).run(Observers())
    (folder / "out" / "config.yaml").write_text(dump_config(config))
    model = model_folder(folder / "out")
    merge_blocks(model, PartitionTable.load(model / "partition.json"))
    scores = {str(block): {"PSNR": 20.0 + block} for block in range(4)}
    write_json(folder / "out" / "results.json", {f"ours_{config.steps}": {"blocks": scores}})
    return folder / "out"


@pytest.fixture(scope="module")
def served(out: Path) -> Iterator[tuple[ViewerServer, Any]]:
    """The viewer, and a page that shows it."""
    with ViewerServer([open_run(out)], port=0) as server, browser_page(WIDTH, HEIGHT) as page:
        page.goto(server.url)
        page.wait_for_selector("canvas")
        wait(page, lambda: server.sessions and server.sessions[0].images_sent)
        close = page.locator(".mantine-Notification-closeButton")  # It tells that WebGL is drawn in software.
        close.click()
        close.wait_for(state="detached")
        session = server.sessions[0]
        for layer in ("cells", "cameras", "points", "grid"):
            session.show_layer(layer, False)
        yield server, page


def settled(page: Any, seconds: float = 0.7) -> np.ndarray:
    """The canvas, once it no longer changes."""
    before = pixels(page)
    while True:
        page.wait_for_timeout(1000 * seconds)
        now = pixels(page)
        if np.abs(now - before).max() < 0.02:
            return now
        before = now


def left_half(image: np.ndarray) -> np.ndarray:
    """Free of the control panel."""
    return image[:, : image.shape[1] // 2]


def expected(server: ViewerServer, hidden: frozenset[int] = frozenset()) -> np.ndarray:
    """The render at the browser's camera, by the renderer alone."""
    session = server.sessions[0]
    state = session.camera
    camera = session.run.upright.camera(state.wxyz, state.position, state.fov, WIDTH, HEIGHT)
    shown = server.models.get(0, server.models.labels(0)[-1]).without(hidden)
    return render(shown, camera, server.models.background(0)).rgb / 255


def test_the_canvas_shows_the_render(served: tuple[ViewerServer, Any]) -> None:
    server, page = served
    shown, truth = left_half(settled(page)), left_half(expected(server))
    assert truth.std() > 0.05
    assert np.abs(shown - truth).mean() < 0.03  # JPEG, and the browser's resampling.
