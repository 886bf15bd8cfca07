"""The viewer in a real browser."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import open_browser, open_page, pixels, wait
from tiny_run import make_config, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import dump_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.geometry import project
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import write_json
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.io import model_folder
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

viser = pytest.importorskip("viser", reason="viser is not installed")

from momentum_gs.viewer.controls import BROWSER, SERVER  # noqa: E402 (needs viser)
from momentum_gs.viewer.image_renderer import COLOR, DEPTH, ERROR_TRAINING, render  # noqa: E402
from momentum_gs.viewer.live import LiveWriter  # noqa: E402
from momentum_gs.viewer.run import open_run  # noqa: E402
from momentum_gs.viewer.server import ViewerServer  # noqa: E402

pytestmark = pytest.mark.slow
EVERY = "log.checkpoint_every=60"
WIDTH, HEIGHT = 640, 480
"""Small, as the browser draws in software."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained, merged and scored run of four blocks."""
    folder = tmp_path_factory.mktemp("viewer")
    config = make_config(write_tiny_scene(folder / "scene"), folder / "out", "steps=40", "growth.until=30", EVERY)
    table = write_table(config)
    Training(config, load_scene(config.scene), table, LocalComm(), torch.device("cpu")).run(Observers())
    (folder / "out" / "config.yaml").write_text(dump_config(config))
    model = model_folder(folder / "out")
    merge_blocks(model, PartitionTable.load(model / "partition.json"))
    scores = {str(block): {"PSNR": 20.0 + block} for block in range(4)}
    write_json(folder / "out" / "results.json", {f"ours_{config.steps}": {"blocks": scores}})
    return folder / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(out: Path, browser: Any) -> Iterator[tuple[ViewerServer, Any]]:
    """The viewer, and a page that shows it."""
    with ViewerServer([open_run(out)], port=0) as server, open_page(browser, WIDTH, HEIGHT) as page:
        page.goto(server.url)
        page.wait_for_selector("canvas")
        wait(page, lambda: server.sessions and server.sessions[0].images_sent)
        close = page.locator(".mantine-Notification-closeButton")  # It tells that WebGL is drawn in software.
        close.click()
        close.wait_for(state="detached")
        session = server.sessions[0]
        session.choose_renderer(SERVER)  # Not by how busy the machine is.
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


def test_a_block_is_switched_off(served: tuple[ViewerServer, Any]) -> None:
    server, page = served
    hidden = frozenset({seen_most(server)})
    sent = server.sessions[0].images_sent
    page.get_by_text("Blocks", exact=True).click()
    switch = page.get_by_label(f"block {min(hidden)}", exact=True)
    switch.wait_for(state="attached")
    # Not at a place of the screen: the panel scrolls, and its folders open slowly.
    switch.evaluate("element => element.click()")
    wait(page, lambda: server.sessions[0].images_sent > sent)
    shown = left_half(settled(page))
    assert np.abs(shown - left_half(expected(server, hidden))).mean() < 0.03
    assert np.abs(shown - left_half(expected(server))).mean() > 0.05
    sent = server.sessions[0].images_sent
    switch.evaluate("element => element.click()")
    wait(page, lambda: server.sessions[0].images_sent > sent)
    assert np.abs(left_half(settled(page)) - left_half(expected(server))).mean() < 0.03


def seen_most(server: ViewerServer) -> int:
    """The block without which the left half of the canvas changes most."""
    truth = left_half(expected(server))
    change = {b: np.abs(left_half(expected(server, frozenset({b}))) - truth).mean() for b in range(4)}
    return max(change, key=lambda block: change[block])


def test_the_browser_draws_gaussians(served: tuple[ViewerServer, Any]) -> None:
    server, page = served
    session = server.sessions[0]
    before = left_half(settled(page))
    session.choose_renderer(BROWSER)
    # Baked colors and another rasterizer: alike, not equal.
    wait(page, lambda: 0.9 < np.corrcoef(left_half(pixels(page)).ravel(), before.ravel())[0, 1] < 0.9999)
    session.choose_renderer(SERVER)
    wait(page, lambda: np.abs(left_half(pixels(page)) - before).mean() < 0.02)


def test_a_click_on_a_frustum_flies_there_and_shows_the_image(served: tuple[ViewerServer, Any]) -> None:
    server, page = served
    session = server.sessions[0]
    session.show_layer("cameras", True)
    settled(page)
    state = session.camera
    seen_by = session.run.upright.camera(state.wxyz, state.position, state.fov, WIDTH, HEIGHT)
    for camera in session.run.cameras:
        (x, y), depth = (part[0].tolist() for part in project(camera.center[None], seen_by))
        if depth > 0 and 5 < x < WIDTH / 2 - 20 and 5 < y < HEIGHT - 5:
            page.mouse.click(x, y)
            page.wait_for_timeout(1000)
            if session.panel_text:
                break
    wait(page, lambda: session.panel_text)
    chosen = next(c for c in session.run.cameras if f"**{c.name}**" in session.panel_text)
    wait(page, lambda: np.allclose(session.camera.position, session.run.upright.pose(chosen).position, atol=1e-3))
    assert "PSNR" in session.panel_text and "trains blocks" in session.panel_text
    page.get_by_text(chosen.name).first.wait_for()
    assert page.locator("img").count() >= 2  # Image and render, and the error.
    session.show_layer("cameras", False)
    session.go_home()


def test_the_timeline_and_the_errors_of_a_state(served: tuple[ViewerServer, Any]) -> None:
    server, page = served
    session, labels = server.sessions[0], server.models.labels(0)
    newest = labels[-1]
    page.get_by_text("Timeline").first.wait_for()
    session.choose_state(labels[0])
    page.get_by_text(re.compile(r"anchors, on cpu")).first.wait_for()
    page.locator(f"input[value='{labels[0]}']").first.wait_for(state="attached")
    session.choose_mode(ERROR_TRAINING)
    page.get_by_text(re.compile(r"is seen in \d+ of \d+ training views")).first.wait_for()
    # A checkpoint that is removed meanwhile is one line; what is shown stays, and so does the viewer.
    session.choose_mode(COLOR)
    session.choose_state(newest)
    assert labels[:2] == ["step 60, checkpoint", "step 80, checkpoint"]
    folder = session.run.path / "checkpoint" / "step_80"
    away = folder.rename(folder.with_name("away"))
    session.choose_state(labels[1])
    page.get_by_text(re.compile("any more; choose another state")).first.wait_for()
    session.take_news(0)
    away.rename(folder)
    session.choose_state(newest)
    assert np.abs(left_half(settled(page)) - left_half(expected(server))).mean() < 0.03


def test_two_browsers_do_not_disturb_each_other(served: tuple[ViewerServer, Any], browser: Any) -> None:
    server, page = served
    with open_page(browser, WIDTH, HEIGHT) as other:
        other.goto(server.url)
        wait(page, lambda: len(server.sessions) == 2)
        server.sessions[1].choose_mode(DEPTH)
    wait(page, lambda: len(server.sessions) == 1)
    assert np.abs(left_half(settled(page)) - left_half(expected(server))).mean() < 0.03


def test_states_of_a_training_arrive(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentum_gs.viewer.live.EVERY", 0.0)
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out", "steps=100000")
    table = write_table(config)
    (tmp_path / "out" / "config.yaml").write_text(dump_config(config))
    over = threading.Event()
    training = Training(config, load_scene(config.scene), table, LocalComm(), torch.device("cpu"))
    observers = Observers([LiveWriter(tmp_path / "out")])
    thread = threading.Thread(target=training.run, args=(observers, over.is_set))
    thread.start()
    try:
        with ViewerServer([open_run(tmp_path / "out")], port=0) as server, open_page(browser, WIDTH, HEIGHT) as page:
            page.goto(server.url)
            wait(page, lambda: server.sessions and server.models.live_step(0))
            session, first = server.sessions[0], server.models.live_step(0)
            session.choose_renderer(SERVER)
            wait(page, lambda: session.images_sent and server.models.live_step(0) != first)
            page.get_by_text(re.compile(r"step \d+, ")).first.wait_for()
            # A trainer that is killed closes nothing: the viewer goes on with what it has.
            over.set()
            thread.join()
            sent = session.images_sent
            session.choose_mode(DEPTH)
            wait(page, lambda: session.images_sent > sent)
    finally:
        over.set()
        thread.join()
    observers.close()
    assert not (tmp_path / "out" / "live").exists()


def test_a_lost_server_is_shown(out: Path, browser: Any) -> None:
    with open_page(browser, WIDTH, HEIGHT) as page:
        with ViewerServer([open_run(out)], port=0) as server:
            page.goto(server.url)
            wait(page, lambda: server.sessions)
        page.get_by_text("Connecting...").first.wait_for()
