"""What 'doctor' measures, fixes and estimates. Its findings on broken scenes are in test_broken_scenes.py."""

import json
import math
import os
import shutil
import statistics
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny_run import BASE, CPU, make_config, write_table
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.load import load_config
from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.core.window import unpack_owned
from momentum_gs.data.colmap.model import read_model
from momentum_gs.data.scene import load_scene
from momentum_gs.doctor import estimate as doctor_estimate
from momentum_gs.doctor.estimate import Expected, Probe, SavedBytes, estimates, expect, probe, resized
from momentum_gs.doctor.findings import Finding
from momentum_gs.doctor.images import check_exposure, inspect_images, near_matches
from momentum_gs.doctor.poses import check_poses
from momentum_gs.doctor.scene import examine
from momentum_gs.model.init import init_anchors
from momentum_gs.partition.budget import GROWTH
from momentum_gs.train.blocks.anchor_budget import bytes_per_anchor

COARSE = ["stage=coarse", "steps=2", "scene.resolution=1", "model.voxel_size=0.3"]


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def scene(whole_scene: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_scene, tmp_path / "scene"))


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["doctor", *BASE, *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def checks(record: dict[str, Any], severity: str) -> set[str]:
    return {finding["check"] for finding in record["findings"] if finding["severity"] == severity}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "doctor" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# Findings.


@pytest.mark.parametrize(
    "message", ["a/b.bin: found 3, expected 4; do this", "here: found; do that", "here: found 3, expected 4", "a: b"]
)
def test_a_finding_of_an_error_reads_as_the_error(message: str) -> None:
    assert str(Finding.of_error("check", UserError(message))) == message


# Layouts.


@pytest.mark.slow
def test_train_and_val_folders(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = tmp_path / "both"
    for part in ("train", "val"):
        shutil.copytree(scene, both / part)
    assert doctor(capsys, str(both), *COARSE)[0] == 0
    (both / "val" / "images" / "003.png").rename(both / "val" / "images" / "003.PNG")
    status, record = doctor(capsys, str(both), *COARSE)
    assert status == 1
    missing = next(finding for finding in record["findings"] if finding["check"] == "image-missing")
    assert missing["where"] == str(both / "val" / "images") and missing["names"] == ["003.png"]


@pytest.mark.slow
def test_transforms_file(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = read_model(scene / "sparse" / "0").cameras
    shutil.rmtree(scene / "sparse")
    frames = []
    for camera in cameras:
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = camera.rotation.T @ torch.diag(torch.tensor([1.0, -1, -1]).double())  # To OpenGL's axes.
        pose[:3, 3] = camera.center
        frames.append({"file_path": f"images/{camera.name}", "transform_matrix": pose.tolist()})
    record = {"fl_x": 40, "fl_y": 40, "cx": 24, "cy": 18, "w": 48, "h": 36, "frames": frames}
    (scene / "transforms.json").write_text(json.dumps(record))
    assert doctor(capsys, str(scene), *COARSE)[0] == 0
    (scene / "images" / "003.png").write_bytes(b"")
    status, found = doctor(capsys, str(scene), *COARSE)
    assert (status, checks(found, "error")) == (1, {"image-unreadable"})


# Poses that cannot be used.


def test_all_bad_poses_are_named_and_the_rest_is_checked(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scene / "sparse" / "0" / "images.bin"
    data = bytearray(path.read_bytes())
    size = (len(data) - 8) // 16  # Names of one length, no observations: equal records.
    for i in (3, 7):
        data[8 + i * size + 4 : 8 + i * size + 12] = struct.pack("<d", math.nan)
    path.write_bytes(data)
    (scene / "images" / "010.png").unlink()
    status, record = doctor(capsys, str(scene), *COARSE)
    bad = [finding["names"] for finding in record["findings"] if finding["severity"] == "error"]
    assert (status, bad) == (1, [["003.png", "007.png"], ["010.png"]])


# Fixes.


@pytest.mark.slow
def test_images_of_another_case_are_linked_into_place(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((scene / "images").glob("*.png"))[:5]:
        path.rename(path.with_suffix(".PNG"))
    before = contents(scene)
    assert doctor(capsys, str(scene), *COARSE)[0] == 1
    for _ in range(2):  # A second fix changes nothing.
        status, record = doctor(capsys, str(scene), "--fix", *COARSE)
        assert (status, [fix["setting"] for fix in record["fixes"]]) == (0, ["scene.images=doctor/images"])
        assert contents(scene) == before, "originals are not touched"
    links = sorted((scene / "doctor" / "images").iterdir())
    assert len(links) == 16 and all(link.is_symlink() for link in links)
    assert len(load_scene(load_config(None, [f"scene.path={scene}", "scene.images=doctor/images"]).scene).train) == 14
    shutil.rmtree(scene / "doctor")
    assert doctor(capsys, str(scene), *COARSE)[0] == 1, "without its folder the fix is undone"


@pytest.mark.slow
def test_missing_images_are_skipped_and_both_parts_get_the_same_fix(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both"
    for part in ("train", "val"):
        shutil.copytree(scene, both / part)
    images = both / "train" / "images"
    (images / "002.png").rename(images / "002.PNG")
    (images / "005.png").unlink()
    status, record = doctor(capsys, str(both), "--fix", *COARSE)
    settings = [fix["setting"] for fix in record["fixes"]]
    assert (status, settings) == (0, ["scene.images=doctor/images", "scene.bad_images=skip"])
    loaded = load_scene(load_config(None, [f"scene.path={both}", *settings]).scene)
    assert [name for name, path in loaded.image_paths.items() if not path.is_file()] == ["train/005.png"]
    # With the settings of the fix there is nothing left to do.
    assert doctor(capsys, str(both), "--fix", *settings, *COARSE)[1]["fixes"] == []


@pytest.mark.slow
def test_a_test_list_loses_the_names_that_are_not_there(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene / "test_list.txt").write_text("003.png\nelsewhere.png\n007.png\n")
    before = contents(scene)
    status, record = doctor(capsys, str(scene), "--fix", *COARSE)
    assert (status, contents(scene)) == (0, before)
    setting = record["fixes"][0]["setting"]
    loaded = load_scene(load_config(None, [f"scene.path={scene}", setting]).scene)
    assert [camera.name for camera in loaded.test] == ["003.png", "007.png"]


@pytest.mark.slow
def test_unreadable_images_are_skipped_by_a_setting(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene / "images" / "004.png").write_bytes(b"")
    status, record = doctor(capsys, str(scene), "--fix", *COARSE)
    assert (status, [fix["setting"] for fix in record["fixes"]]) == (0, ["scene.bad_images=skip"])
    assert "image-unreadable" in checks(record, "warning")
    assert not (scene / "doctor").exists(), "nothing had to be written"


def test_a_fix_that_cannot_be_written_is_one_line(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (scene / "test_list.txt").write_text("003.png\nelsewhere.png\n")
    (scene / "doctor").write_text("in the way")
    assert main(["doctor", *BASE, str(scene), "--fix", *COARSE]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(scene / "doctor") in printed
    assert (scene / "doctor").read_text() == "in the way"


@pytest.mark.parametrize(
    ("missing", "extra", "found"),
    [
        (["a.jpg"], ["a.JPG"], {"a.jpg": "a.JPG"}),
        (["a.jpg"], ["A.png"], {"a.jpg": "A.png"}),
        (["x/a.jpg"], ["y/a.jpg"], {"x/a.jpg": "y/a.jpg"}),
        # With two candidates there is no match, unless one has the right folder.
        (["a.jpg"], ["a.png", "a.JPG"], {}),
        (["x/a.jpg", "y/a.jpg"], ["z/a.jpg"], {}),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"], {"x/a.jpg": "x/a.png", "y/a.jpg": "y/a.png"}),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "z/a.png"], {"x/a.jpg": "x/a.png", "y/a.jpg": "z/a.png"}),
        (["a.jpg"], ["b.jpg"], {}),
    ],
)
def test_near_matches(missing: list[str], extra: list[str], found: dict[str, str]) -> None:
    assert near_matches(missing, extra) == found


# Images.


def test_quick_reads_headers_only(scene: Path) -> None:
    path = scene / "images" / "004.png"
    path.write_bytes(path.read_bytes()[:-200])
    for quick, found in ((True, False), (False, True)):
        config = load_config(None, [f"scene.path={scene}", *COARSE])
        named = [f for f in examine(config, quick=quick).findings if f.check == "image-unreadable"]
        assert bool(named) == found


def test_light_does_not_depend_on_how_pixels_are_stored(tmp_path: Path) -> None:
    grey = np.full((40, 50), 100, np.uint8)
    half = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    half[:, :20] = (255, 255, 255, 0)  # Transparent pixels show nothing.
    kinds: dict[str, np.ndarray] = {
        "8.png": np.dstack([grey] * 3), "16.png": np.dstack([grey] * 3).astype(np.uint16) * 257, "grey.png": grey,
        "alpha.png": half,
    }  # fmt: skip
    for name, pixels in kinds.items():
        (tmp_path / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    facts = inspect_images({name: tmp_path / name for name in kinds})
    # A few roundings of doubles.
    assert [fact.light for fact in facts] == pytest.approx([(100 / 255) ** 2.2] * 4, rel=1e-12)
    assert [(fact.bits, fact.channels) for fact in facts] == [(8, 3), (16, 3), (8, 1), (8, 4)]


def test_stops_are_factors_of_two_of_light(tmp_path: Path) -> None:
    for i in range(9):
        # An eighth of the light is three stops, which is a level lower by 2^(3 / 2.2).
        level = 200 / 2 ** (3 / 2.2) if i == 4 else 200
        pixels = np.full((8, 8, 3), round(level), np.uint8)
        (tmp_path / f"{i}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    facts = inspect_images({f"{i}.png": tmp_path / f"{i}.png" for i in range(9)})
    findings = check_exposure(tmp_path, facts)
    assert [finding.names for finding in findings] == [("4.png",)]
    assert "-3.0 stops" in findings[0].found


# Poses.


def outliers(cameras: Sequence[Camera], points: torch.Tensor) -> set[tuple[str, tuple[str, ...]]]:
    found = check_poses(Path("model"), cameras, points, PartitionConfig())
    return {(finding.check, finding.names) for finding in found if finding.check != "up-axis"}


def test_outliers_do_not_depend_on_unit_or_axes(scene: Path) -> None:
    model = read_model(scene / "sparse" / "0")
    cameras = list(model.cameras)
    flip = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))
    cameras[5] = replace(cameras[5], rotation=flip @ cameras[5].rotation, translation=flip @ cameras[5].translation)
    cameras[9] = nadir_camera("009.png", 800, 0)
    expected = {("poses-direction", ("005.png",)), ("poses-far", ("009.png",)), ("poses-blind", ("005.png", "009.png"))}
    plain = {finding for finding in outliers(cameras, model.points.xyz) if finding[0].startswith("poses")}
    assert plain == expected
    turn = quat_to_matrix(torch.tensor([0.3, -0.5, 0.2, 0.8], dtype=torch.float64))
    for scale in (1e-3, 1e3):
        turned = [
            replace(c, rotation=c.rotation @ turn.T, translation=scale * c.translation) for c in cameras
        ]
        assert outliers(turned, scale * model.points.xyz @ turn.T) == outliers(cameras, model.points.xyz)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        (["partition.aabb=[50,50,-1,60,60,5]"], "partition.aabb"),
        (["partition.aabb=[-4,-4,-1,4,4,5]", "partition.dim=[1,2,2]"], "partition.dim"),
        (["partition.aabb=[-4,-4,-1,4,4,5]", "partition.dim=[2,2,1]"], None),
    ],
)
def test_box_and_grid_against_the_ground(scene: Path, settings: list[str], where: str | None) -> None:
    findings = examine(load_config(None, [f"scene.path={scene}", "model.voxel_size=0.3", *settings])).findings
    assert [finding.where for finding in findings if finding.check == "aabb"] == ([where] if where else [])


# Partition file.


@pytest.mark.slow
def test_partition_file(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path / "out")
    path = tmp_path / "out" / "partition.json"

    def found(*overrides: str) -> list[tuple[str, str]]:
        examination = examine(make_config(scene, tmp_path / "out", *overrides), quick=True)
        return [(f.severity, f.found) for f in examination.findings if f.check == "partition"]

    assert [severity for severity, _ in found()] == ["info"], "none yet"
    table = write_table(config)
    assert found() == []
    os.utime(path, (0, 0))
    assert [severity for severity, _ in found()] == ["warning"], "older than the model"
    assert "older" in found()[0][1]
    assert found("blocks.windows=true", "teacher.enabled=false")[0][0] == "warning"
    without = [[name for name in names if name != "002.png"] for names in table.views]
    replace(table, views=without, windows=None).save(path)
    assert [severity for severity, _ in found()] == ["warning"] and "002.png" in found()[0][1]
    assert [severity for severity, _ in found("partition.dim=[4,1,1]")] == ["error"], "another grid"
    severity, message = found("blocks.windows=true")[0]
    assert severity == "error" and "which pixels" in message, "a file of an earlier version"
    path.write_text("{")
    assert [severity for severity, _ in found()] == ["error"], "damaged"


@pytest.mark.slow
def test_numbers_of_blocks_that_cannot_be_scheduled(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["model.voxel_size=0.3", "partition.dim=[2,2,1]", "blocks.active=5", "--quick"]
    status, record = doctor(capsys, str(scene), *settings)
    assert (status, checks(record, "error")) == (1, {"settings"})
    assert doctor(capsys, str(scene), *settings, "blocks.active=4")[0] == 0


# Estimates.

EXPECTED = Expected(blocks=6, active=2, start=1000, largest=4000, total=20_000, basis="made up")


def values(config_overrides: Sequence[str], scene: Path, own: int = 0) -> dict[str, float]:
    config = load_config(None, [f"scene.path={scene}", *config_overrides])
    probes = [Probe(0.5, 100, "made up"), Probe(2.0, 300, "made up")]
    return {row.what: row.value for row in estimates(config, load_scene(config.scene), EXPECTED, probes, own, CPU)[0]}


def test_estimates_add_up(scene: Path) -> None:
    common = ["steps=700", "store.ram_gb=100", "log.keep_checkpoints=2"]
    found = values(common, scene)
    training = bytes_per_anchor(load_config(None).model)
    assert found["memory of a block in training"] == 4000 * training
    assert found["of it images"] == 16 * 48 * 36 * 3
    assert found["time, one process, anchors as at first"] == 6 * 700 * 0.5
    assert found["time, one process, anchors as at most"] == 6 * 700 * 2
    assert found["host memory"] == found["of it images"] + found["of it inactive blocks"] + 2 * 4000 * training + 300
    # Between two rounds 2 of 6 blocks go and 2 come, each with up to 4,000 of the 20,000 anchors. A block's step
    # counters are a few bytes more.
    inactive = found["of it inactive blocks"] / 20_000
    assert found["swapped between two rounds"] == pytest.approx(2 * 2 * 4000 * inactive, rel=1e-9)
    assert inactive < training, "an inactive block has no gradients"
    # Blocks that memory must not hold are on the disk instead, once; the models do not change.
    spilled = values([*common, "store.ram_gb=0"], scene)
    assert spilled["of it inactive blocks"] == 0
    assert spilled["disk"] - found["disk"] == pytest.approx(found["of it inactive blocks"], rel=1e-9)
    more = values([*common, "log.keep_checkpoints=5"], scene)
    assert more["disk"] - found["disk"] == pytest.approx(3 * found["of it inactive blocks"], rel=1e-9)


def test_too_little_memory_and_disk_are_reported(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [f"scene.path={scene}"])
    loaded = load_scene(config.scene)
    assert estimates(config, loaded, EXPECTED, [], 0, CPU)[1] == []
    usage = shutil.disk_usage(scene)
    monkeypatch.setattr(doctor_estimate.shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    monkeypatch.setattr(doctor_estimate, "free_memory", lambda: 10**6)
    shortages = estimates(config, loaded, EXPECTED, [], 0, CPU)[1]
    assert [finding.check for finding in shortages] == ["memory", "disk"]
    assert all(finding.cure for finding in shortages)


@pytest.mark.slow
def test_expected_anchors(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path / "out", "model.voxel_size=0.3")
    loaded = load_scene(config.scene)
    examination = examine(config, quick=True)
    assert examination.scale is not None
    whole = expect(replace(config, stage="coarse"), loaded, examination.scale, None)
    assert whole.start == examination.scale.anchors == len(init_anchors(loaded.points, config.model)[0])
    cut = expect(config, loaded, examination.scale, write_table(config))
    assert (cut.blocks, cut.active) == (4, 2)
    assert 0 < cut.start < whole.start, "a block sees a part"
    capped = make_config(scene, tmp_path / "out", "anchors.max_per_block=50")
    assert expect(capped, loaded, examination.scale, write_table(config)).total == 200
    with pytest.raises(UserError, match="k = 5"):
        five = make_config(scene, tmp_path / "out", "blocks.active=5")
        expect(five, loaded, examination.scale, write_table(config))


def test_with_windows_a_block_has_its_cell_and_a_step_its_share_of_the_pixels(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path / "out", "model.voxel_size=0.3", "blocks.windows=true")
    loaded, table = load_scene(config.scene), write_table(config)
    scale = examine(config, quick=True).scale
    assert scale is not None and table.windows is not None
    whole = expect(replace(config, blocks=replace(config.blocks, windows=False)), loaded, scale, table)
    assert (whole.around, whole.pixels) == ((0, 0), 1)
    found = expect(config, loaded, scale, table)
    owned = [[float(unpack_owned(text).float().mean()) for text in texts if text] for texts in table.windows]
    assert found.pixels == pytest.approx(statistics.mean(statistics.mean(filter(None, shares)) for shares in owned))
    assert scale.anchors / 4 <= found.start < whole.start, "the cells divide the scene, views overlap"
    assert found.total == pytest.approx(GROWTH * scale.anchors, abs=1) and found.total < whole.total
    assert found.start + found.around[0] == whole.start, "a step renders all anchors that the block's views see"
    rows = {row.what: row.value for row in estimates(config, loaded, found, [Probe(0.5, 100, "made up")], 0, CPU)[0]}
    assert rows["time, one process, anchors as at first"] == 4 * config.steps * 0.5 * found.pixels
    # Without a partition nothing is known about the windows.
    assert expect(config, loaded, scale, None).pixels == 1


@pytest.mark.slow
def test_probe_measures_steps_and_keeps_nothing(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path / "out")
    few, many = probe(config, load_scene(config.scene), (100, 5000), CPU)
    assert 0 < few.seconds < math.inf and 0 < many.seconds < math.inf
    assert 0 < few.bytes < many.bytes
    assert not (tmp_path / "out").exists()


def test_probe_skips_images_that_cannot_be_read(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path / "out", "scene.bad_images=skip")
    loaded = load_scene(config.scene)
    images = sorted(loaded.image_paths.values())
    for path in images[:14]:
        path.write_bytes(b"")
    assert probe(config, loaded, (100,), CPU)[0].seconds > 0
    for path in images:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 14"):
        probe(config, loaded, (100,), CPU)


def test_saved_bytes_are_those_that_backward_needs() -> None:
    a = torch.rand(1000, requires_grad=True)
    saved = SavedBytes()
    with saved:
        b = (a * a).exp()  # The product saves a, counted once; the exponential its result.
    assert saved.bytes == 2 * 4000
    b.sum().backward()
    assert a.grad is not None and torch.equal(a.grad, 2 * a.detach() * b.detach())


@pytest.mark.parametrize("n", [1, 300, 5000])
def test_resized_anchors_are_near_the_given_ones(scene: Path, n: int) -> None:
    config = load_config(None, ["model.voxel_size=0.3"])
    anchors, _ = init_anchors(read_model(scene / "sparse" / "0").points, config.model)
    found = resized(anchors, n)
    assert len(found) == n
    nearest = torch.cdist(found.position, anchors.position).amin(dim=1)
    # At most half of the spacing on every axis.
    assert float(nearest.max()) <= float(anchors.log_scale.detach().exp().max()) * math.sqrt(3) / 2


@pytest.mark.slow
def test_json_is_the_only_output_even_if_loading_prints(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(scene / "images", scene / "masks")
    record = doctor(capsys, str(scene), *COARSE)[1]
    assert {"scene", "fixes", "findings", "estimates"} == record.keys()
    assert {row["unit"] for row in record["estimates"]} == {"bytes", "seconds", "anchors"}
