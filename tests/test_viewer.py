"""The viewer without a browser: coordinates, door, renders, states of a training, camera paths, video."""

import json
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scene_files import camera
from splat_scene import random_splats
from tiny_run import assert_same_bits, make_config, model_of, write_table
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.image import to_uint8
from momentum_gs.data.frame import Frame
from momentum_gs.data.scene import load_scene
from momentum_gs.model.background import Background
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.splat_io import save_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.blending import blending_weights
from momentum_gs.render.view import decode_view, draw, render_image
from momentum_gs.train.events import Observers, RoundStarted, TrainingState
from momentum_gs.train.loop import Training
from momentum_gs.viewer.camera_path import KeyFrame, along, fly_through, load_path, orbit, save_path, slerp
from momentum_gs.viewer.cells import outlines
from momentum_gs.viewer.crop import CropBox
from momentum_gs.viewer.gate import COOKIE, Gate, Request, parse_request, verdict
from momentum_gs.viewer.image_renderer import (
    BLOCK,
    COLOR,
    ERROR_HELD_OUT,
    MODES,
    NOTHING,
    beside,
    range_of,
    render,
)
from momentum_gs.viewer.live import LiveReader, LiveWriter
from momentum_gs.viewer.models import EXPORT, Models
from momentum_gs.viewer.run import BLOCKS, CHECKPOINT, ViewerRun, open_run
from momentum_gs.viewer.shown import Shown
from momentum_gs.viewer.upright import UP_AXES, Upright, quaternion, upright_cloud

BLACK = torch.zeros(3)
SHORT = ("steps=20", "growth.until=10", "log.checkpoint_every=25")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of four blocks, not merged."""
    folder = tmp_path_factory.mktemp("viewer")
    config = make_config(write_tiny_scene(folder / "scene"), folder / "out", *SHORT)
    table = write_table(config)
    Training(config, load_scene(config.scene), table, LocalComm(), torch.device("cpu")).run(Observers())
    (folder / "out" / "config.yaml").write_text(dump_config(config))
    return folder / "out"


@pytest.fixture(scope="module")
def run(out: Path) -> ViewerRun:
    return open_run(out)


def shown_of(run: ViewerRun) -> Shown:
    return run.load(run.states()[-1])


def splats(n: int = 50) -> Splats:
    generator = torch.Generator().manual_seed(0)
    position = torch.randn(n, 3, generator=generator)
    return Splats.fresh(position, torch.rand(n, 3, generator=generator), torch.full((n, 3), -2.0), 1)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 0.01))
def test_a_quaternion_is_that_of_its_rotation(quat: list[float]) -> None:
    rotation = quat_to_matrix(torch.tensor(quat, dtype=torch.float64))
    again = quat_to_matrix(torch.tensor(quaternion(rotation), dtype=torch.float64))
    assert torch.allclose(again, rotation, atol=1e-9)


@pytest.mark.parametrize("frame", [Frame(), Frame((3.0, -2.0, 7.0), 2.5, ("y", "z", "x"))])
def test_a_camera_comes_back_from_the_viewer(frame: Frame) -> None:
    upright, there = Upright(frame), camera("a.png")
    pose = upright.pose(there)
    back = upright.camera(pose.wxyz, pose.position, 2 * float(np.arctan(15 / there.fy)), 40, 30)
    assert torch.allclose(back.rotation, there.rotation, atol=1e-9)
    assert torch.allclose(back.center, there.center, atol=1e-9)
    assert back.fy == pytest.approx(there.fy)


@pytest.mark.parametrize("up", UP_AXES)
def test_the_up_axis_of_an_export_becomes_z(up: str) -> None:
    means = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    raised = means.clone()
    raised[:, "xyz".index(up[-1])] += -1.0 if up.startswith("-") else 1.0
    upright = upright_cloud(means, up)
    step = upright.points(raised) - upright.points(means)
    assert np.allclose(step[:, :2], 0, atol=1e-6) and (step[:, 2] > 0).all()


def test_an_unknown_up_axis_is_refused() -> None:
    with pytest.raises(UserError, match="--up is 'w'"):
        upright_cloud(torch.zeros(1, 3), "w")


def request(target: str = "/", **headers: str) -> Request:
    return Request("GET", target, {"host": "here:80", **headers})


@pytest.mark.parametrize(
    ("asked", "token", "status"),
    [
        (request(), None, 200),
        (request(), "secret", 403),
        (request("/?token=secret"), "secret", 303),
        (request("/?token=secreT"), "secret", 403),
        (request("/?token="), "secret", 403),
        (request(cookie=f"a=b; {COOKIE}=secret"), "secret", 200),
        (request(cookie=f"{COOKIE}=other"), "secret", 403),
        (request(origin="http://here:80"), None, 200),
        (request(origin="http://elsewhere"), None, 403),
        (request(origin="null"), None, 403),
        (request(origin="http://elsewhere", cookie=f"{COOKIE}=secret"), "secret", 403),
        (Request("POST", "/", {}), None, 405),
        (None, None, 400),
    ],
)
def test_the_gate_lets_in_who_may(asked: Request | None, token: str | None, status: int) -> None:
    assert verdict(asked, token)[0] == status


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_none(head: bytes) -> None:
    assert verdict(parse_request(head), "secret")[0] in (303, 400, 403, 405)


def test_the_gate_passes_nothing_on_without_the_token() -> None:
    with socket.create_server(("127.0.0.1", 0)) as inner:
        inner.settimeout(0.2)
        gate = Gate("127.0.0.1", 0, inner.getsockname()[1], "secret")
        try:
            for target in ("/", "/?token=wrong"):
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    urllib.request.urlopen(f"http://127.0.0.1:{gate.port}{target}")
            with pytest.raises(TimeoutError):
                inner.accept()
        finally:
            gate.close()


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            Gate("127.0.0.1", port, 1, None)


def test_color_is_the_exact_render(run: ViewerRun) -> None:
    shown, view = shown_of(run), nadir_camera("x", 0.5, -0.5)
    exact = render_image(shown.model, shown.decoder, view, BLACK)
    assert np.array_equal(render(shown, view, BLACK).rgb, to_uint8(exact).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_renders(run: ViewerRun, mode: str) -> None:
    view = nadir_camera("x", 0.5, -0.5)
    image = render(shown_of(run), view, BLACK, mode, {0: 20.0, 1: 25.0})
    assert image.rgb.shape == (view.height, view.width, 3) and image.rgb.std() > 0
    assert (image.depth[image.depth < NOTHING] > 0).all()


def test_contributions_sum_to_the_alpha_of_the_view(run: ViewerRun) -> None:
    shown, view = shown_of(run), nadir_camera("x", 0.5, -0.5)
    with torch.no_grad():
        decoded = decode_view(shown.model, shown.decoder, view)
        alpha = draw(decoded.gaussians, view, BLACK).alpha
    assert float(blending_weights(decoded.gaussians, view).sum()) == pytest.approx(float(alpha.sum()), rel=1e-4)


def test_errors_of_a_state_are_measured_in_the_background(run: ViewerRun) -> None:
    models, label = Models([run]), run.states()[-1].label
    measured = models.errors(0, label, ERROR_HELD_OUT)
    assert models.errors(0, label, ERROR_HELD_OUT) is measured
    *_, found = models.measure_errors(0, label, ERROR_HELD_OUT)
    for thread in threading.enumerate():
        if thread.name == "errors":
            thread.join()
    assert measured.found is not None and measured.found.views == measured.views == len(run.held_out)
    assert torch.equal(measured.found.mean.nan_to_num(), found.mean.nan_to_num())
    limits, view = range_of(found.mean), nadir_camera("x", 0.5, -0.5)
    assert 0 <= limits[0] < limits[1] <= 1
    shown = replace(models.get(0, label), error=found.mean)
    image, grey = (render(shown, view, BLACK, ERROR_HELD_OUT, error_range=r).rgb for r in (limits, None))
    assert np.ptp(image.astype(int), axis=2).max() > 100 and np.ptp(grey.astype(int), axis=2).max() <= 1
    part = shown.without(frozenset({0}))
    assert part.error is not None and len(part.error) == len(part.model)
    with pytest.raises(UserError, match="no images of held-out views.*-s"):
        Models([replace(run, views=None)]).measure_errors(0, label, ERROR_HELD_OUT)


def test_checkpoints_are_states_of_the_timeline(run: ViewerRun, out: Path) -> None:
    """In the order of time; the last one is the model that was saved; one that is removed meanwhile is one line."""
    *_, earlier, last, saved = run.states()
    assert [state.kind for state in (earlier, last, saved)] == [CHECKPOINT, CHECKPOINT, BLOCKS]
    assert earlier.step < last.step == 40 and last.label == "step 40, checkpoint"
    found, wanted = run.load(last), run.load(saved)
    assert torch.equal(found.block, wanted.block)
    for name, rows in found.model.rows().items():
        assert torch.equal(rows, wanted.model.rows()[name]), name
    view = nadir_camera("x", 0.5, -0.5)
    assert np.array_equal(render(found, view, BLACK).rgb, render(wanted, view, BLACK).rgb)
    models, folder = Models([run]), out / "checkpoint"
    moved = (folder / f"step_{earlier.step}").rename(folder / "away")
    with pytest.raises(UserError, match=f"step_{earlier.step}: damaged or removed.*choose another state"):
        run.load(earlier)
    with pytest.raises(UserError, match="any more; choose another state"):
        models.get(0, earlier.label)
    moved.rename(folder / f"step_{earlier.step}")
    block = folder / f"step_{earlier.step}" / "block_1.safetensors"
    whole = block.read_bytes()
    block.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="block_1.safetensors has .* bytes, expected"):
        models.get(0, earlier.label)
    block.write_bytes(whole)
    assert len(models.get(0, earlier.label).model) > 0


def test_blocks_before_the_merge_are_all_blocks(run: ViewerRun, out: Path) -> None:
    assert run.states()[-1].kind == BLOCKS
    shown = shown_of(run)
    assert shown.blocks == [0, 1, 2, 3]
    folder = model_folder(out)
    for block in range(4):
        alone = load_model(model_file(folder, block))[0]
        assert torch.equal(shown.without(frozenset({0, 1, 2, 3} - {block})).model.position, alone.position)
    assert len(shown.without(frozenset(range(4))).model) == 0
    assert shown.without(frozenset()) is shown


def test_a_crop_box_keeps_what_is_inside(run: ViewerRun) -> None:
    shown, box = shown_of(run), CropBox((-2.0, -2.0, -9.0), (1.0, 3.0, 9.0))
    place = run.upright.points(shown.model.position)
    inside = ((place >= box.low) & (place <= box.high)).all(axis=1)
    assert 0 < inside.sum() < len(inside)
    assert torch.equal(box.crop(shown, run).model.position, shown.model.position[torch.from_numpy(inside)])
    lengths = np.ptp(box.edges, axis=1).sum(axis=1)
    assert sorted(lengths.tolist()) == [3.0] * 4 + [5.0] * 4 + [18.0] * 4


def test_two_states_stand_beside_each_other(run: ViewerRun) -> None:
    view = nadir_camera("x", 0.5, -0.5)
    left, right = (render(shown_of(run), view, BLACK, mode) for mode in (COLOR, BLOCK))
    both = beside(left, right, 0.25)
    line = view.width // 4
    assert np.array_equal(both.rgb[:, : line - 1], left.rgb[:, : line - 1])
    assert np.array_equal(both.rgb[:, line + 1 :], right.rgb[:, line + 1 :])
    assert (both.rgb[:, line - 1 : line + 1] == 255).all()


def test_states_are_found_by_their_names(run: ViewerRun) -> None:
    models = Models([run, run])
    assert [models.named(name) for name in models.names[:1]] == [(0, models.labels(0)[0])]
    assert models.named("-") is None


def test_outlines_hold_the_cameras_of_their_block(run: ViewerRun) -> None:
    assert run.table is not None
    rings = {outline.block: outline for outline in outlines(run)}
    for view in run.cameras:
        outline = rings[run.table.owner(view)]
        x, y, _ = run.upright.pose(view).position
        ring = outline.floor[:, :2].astype(np.float32)
        assert cv2.pointPolygonTest(ring, (x, y), True) > -0.2
        assert (outline.ceiling[:, 2] >= outline.floor[:, 2]).all()  # The scene is a plane.


def test_an_export_is_shown(tmp_path: Path) -> None:
    save_splats(tmp_path / "model.ply", splats())
    opened = open_run(tmp_path / "model.ply")
    models = Models([opened])
    assert models.labels(0) == [EXPORT]
    assert isinstance(models.get(0, EXPORT).decoder, Harmonics)
    assert len(models.get(0, EXPORT).model) == 50


def test_a_run_without_its_scene_is_shown_without_images(out: Path, tmp_path: Path) -> None:
    moved = open_run(out, scene_path=str(tmp_path / "gone")) if (out / "cameras.json").exists() else None
    assert moved is None or moved.views is None


@pytest.mark.parametrize("what", ["nothing", "empty.ply"])
def test_what_is_no_run_is_one_line(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.ply").write_bytes(b"")
    assert main(["view", str(tmp_path / what)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def start_training(folder: Path, *overrides: str) -> tuple[Training, LiveWriter]:
    config = make_config(write_tiny_scene(folder / "scene"), folder / "out", *overrides)
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), torch.device("cpu"))
    return training, LiveWriter(folder / "out")


@pytest.mark.slow
def test_a_watched_training_shows_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERY", "_ASK_EVERY"):
        monkeypatch.setattr(f"momentum_gs.viewer.live.{name}", 0.0)
    monkeypatch.setattr("momentum_gs.viewer.live.SHARE", 1e9)
    training, writer = start_training(tmp_path, "steps=4000")
    reader = LiveReader(tmp_path / "out")
    found: dict[int, Shown] = {}

    def enough() -> bool:
        reader.ask()
        step = reader.step()
        if step is not None and step >= 0:
            found[step] = reader.load()
        return len(found) > 3 and found[max(found)].blocks == [0, 1, 2, 3]

    training.run(Observers([writer]), enough)
    states = [found[step] for step in sorted(found)]
    first, last = (state.subset(state.block == states[0].blocks[0]).model.position for state in (states[0], states[-1]))
    assert first.shape != last.shape or not torch.equal(first, last)
    assert render(states[-1], nadir_camera("x", 0.0, 0.0), BLACK).rgb.std() > 0
    writer.close()
    assert not (tmp_path / "out" / "live").exists()
    with pytest.raises(UserError, match="holds no state of a training"):
        reader.load()


def test_what_is_behind_a_student_is_shown_while_it_trains(tmp_path: Path) -> None:
    writer, reader, behind = LiveWriter(tmp_path), LiveReader(tmp_path), Background(1)
    torch.nn.init.normal_(behind.sh)
    writer.on_event(RoundStarted(0, (0,), False))
    splats = random_splats(5)
    writer.on_state(TrainingState(7, {0: (splats, Harmonics(0, behind))}, lambda _: None, 1, False))
    assert writer._job is not None
    writer._job.result()
    shown = reader.load()
    assert isinstance(shown.decoder, Harmonics) and shown.decoder.background is not None
    assert shown.decoder.background.sh.equal(behind.sh)
    assert shown.model.position.equal(splats.position) and reader.step() == 7


@pytest.mark.slow
def test_a_training_that_nobody_watches_writes_nothing(tmp_path: Path) -> None:
    training, writer = start_training(tmp_path, "steps=30")
    folder = tmp_path / "out" / "live"
    written: list[Path] = []
    training.run(Observers([writer]), lambda: bool(written.extend(folder.iterdir())))
    assert not written
    writer.close()


@pytest.mark.slow
def test_watching_changes_no_bit_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentum_gs.viewer.live.EVERY", 0.0)
    models = []
    for watched in (False, True):
        folder = tmp_path / str(watched)
        training, writer = start_training(folder, "steps=30")
        reader = LiveReader(folder / "out")
        training.run(Observers([writer] if watched else []), lambda reader=reader: bool(reader.ask()))
        writer.close()
        models.append(model_of(folder / "out"))
    assert_same_bits(*models)


def test_a_path_passes_its_key_frames(tmp_path: Path) -> None:
    frames = [KeyFrame((float(i), float(i * i), 1.0), (1.0, 0.1 * i, 0.0, 0.0), 0.5 + 0.1 * i) for i in range(4)]
    save_path(tmp_path / "p.json", frames)
    assert load_path(tmp_path / "p.json") == frames
    poses = along(frames, 31)
    for i, frame in enumerate(frames):
        assert np.allclose(poses[10 * i].position, frame.position)
        assert poses[10 * i].fov == pytest.approx(frame.fov)
        assert abs(np.dot(poses[10 * i].wxyz, frame.wxyz)) == pytest.approx(np.linalg.norm(frame.wxyz))


@given(st.floats(0, 1), st.floats(-3, 3))
def test_slerp_turns_evenly(share: float, angle: float) -> None:
    one, other = (1.0, 0.0, 0.0, 0.0), (float(np.cos(angle / 2)), float(np.sin(angle / 2)), 0.0, 0.0)
    w, x, _, _ = slerp(one, other, share)
    assert 2 * np.arctan2(x, w) == pytest.approx(share * angle, abs=1e-6)


def test_an_orbit_keeps_its_distance_and_closes(run: ViewerRun) -> None:
    frames = orbit(run)
    poses = np.array([pose.position for pose in along(frames, 49)])
    middle = poses[:-1].mean(axis=0)
    radius = np.linalg.norm(poses - middle, axis=1)
    assert np.ptp(radius) / radius.mean() < 0.01
    assert np.allclose(poses[0], poses[-1])


def test_a_flight_starts_and_ends_at_training_views(run: ViewerRun) -> None:
    frames = fly_through(run)
    names = sorted(c.name for c in run.cameras if c.name not in run.held_out)
    first, last = (next(c for c in run.cameras if c.name == name) for name in (names[0], names[-1]))
    assert frames[0].position == run.upright.pose(first).position
    assert frames[-1].position == run.upright.pose(last).position


@pytest.mark.parametrize("text", ["", "{}", '{"key_frames": []}', json.dumps({"key_frames": [{"fov": 1}] * 2})])
def test_a_file_without_key_frames_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match="key frames, expected|no key frames"):
        load_path(tmp_path / "p.json")


def test_a_video_has_the_images_of_the_path(tmp_path: Path) -> None:
    save_splats(tmp_path / "model.ply", splats())
    file = tmp_path / "orbit.avi"
    words = ["--size", "64x48", "--fps", "5", "--seconds", "1", "--colors", COLOR]
    assert main(["video", str(tmp_path / "model.ply"), "-o", str(file), *words]) == 0
    video = cv2.VideoCapture(str(file))
    images = []
    while (read := video.read())[0]:
        images.append(read[1])
    assert len(images) == 5 and images[0].shape == (48, 64, 3)
    assert np.stack(images).std() > 0


@pytest.mark.parametrize("words", [["-o", "x.gif"], ["-o", "x.mp4", "--size", "big"]])
def test_a_video_that_cannot_be_is_one_line(tmp_path: Path, words: list[str]) -> None:
    save_splats(tmp_path / "model.ply", splats())
    assert main(["video", str(tmp_path / "model.ply"), *words]) == 2
