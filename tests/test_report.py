"""The page about a run: it loads nothing, runs nothing, and names what is missing."""

import base64
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_run import BASE, SETTINGS
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import PointCloud
from momentum_gs.data.images import write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.data.viewer_files import read_cameras_json, write_cameras_json
from momentum_gs.eval.block_map import block_map
from momentum_gs.eval.history import read_history
from momentum_gs.eval.published import GROUPS, guess_scene, published_scene, scene_keys
from momentum_gs.eval.report import IMAGE_WIDTH
from momentum_gs.eval.results import write_json
from momentum_gs.eval.svg import MAX_POINTS, line_chart, ticks

HOSTILE = "\"><script>alert(1)<'/script>&amp;.png"
"""A file name that leaves an attribute and opens an element wherever it is pasted unescaped."""
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "section", "p", "code", "table", "tr", "th",
    "td", "div", "img", "svg", "path", "text", "circle", "polyline", "image",
}  # fmt: skip


class Page(HTMLParser):
    """Elements, addresses, texts and table rows of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._in_cell = tag in ("td", "th")
        for name, value in attributes:
            self.attributes.add(name)
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.addresses.append(value or "")
            if name == "alt":
                self.alts.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False


def scene_of(cameras: int) -> Scene:
    views = [nadir_camera(f"{i}.png", x, y) for i, (x, y) in enumerate([(-2, -2), (2, -2), (-2, 2), (2, 2)][:cameras])]
    points = PointCloud(torch.rand(50, 3, dtype=torch.float64) * 4 - 2, torch.zeros(50, 3, dtype=torch.uint8))
    return Scene(Path("x"), views, [], points, {})


@pytest.fixture()
def bare(tmp_path: Path) -> Path:
    """A run that has only its settings."""
    out = tmp_path / "a run"
    out.mkdir()
    config = replace(Config(), scene=SceneConfig(path=f"/data/rubble-pixsfm/{HOSTILE}"), steps=30, seed=5)
    (out / "config.yaml").write_text(dump_config(config))
    return out


@pytest.fixture()
def whole(bare: Path) -> Path:
    """A run with partition, cameras, events, renders and scores."""
    table = PartitionTable((-5.0, -5.0, -5.0, 5.0, 5.0, 5.0), (2, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 4)
    table.save(bare / "partition.json")
    write_cameras_json(bare / "cameras.json", scene_of(4))
    events = [
        {"event": "RoundStarted", "step": 0, "blocks": [0, 2], "decoder_live": True},
        {"event": "StepDone", "step": 10, "losses": {"0": {"l1": 0.2}, "2": {"l1": 0.4}}, "anchors": {"0": 5, "2": 7}},
        {"event": "BlocksMeasured", "step": 10, "psnr": {"0": 20.5}, "ssim": {"0": 0.5}, "weight": {"0": 1.25}},
    ]
    (bare / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    names = [HOSTILE, "1.png", "2.png"]
    for i, name in enumerate(names):
        for kind in ("renders", "gt"):
            write_png(bare / "test" / "ours_30" / kind / name, torch.full((3, 40, 1000), i / 4))
    protocol = {
        "split": "test", "views": 3, "view_list_sha256": "0" * 64, "resolution": {"1000x40": 3},
        "lpips": {"net": "squeeze", "package": "p", "input_range": "r"}, "anchors": 1234567, "n": 4, "k": 2,
    }  # fmt: skip
    scores = {"PSNR": 24.321, "SSIM": 0.6543, "PSNR_cc": 25.432, "SSIM_cc": 0.6654, "LPIPS_squeeze": 0.1357}
    blocks = {"blocks": {"0": {"PSNR": 21.11, "pixels": 10}, "3": {"PSNR": 26.66, "pixels": 30}},
              "worst_block": {"block": 0, "PSNR": 21.11}, "border": {"PSNR": 22.0, "share": 0.25},
              "interior": {"PSNR": 25.0, "share": 0.75}, "merge_gap": {"PSNR": -0.125}}  # fmt: skip
    older = {"PSNR": 19.99, "protocol": {**protocol, "resolution": {"500x20": 3}}}
    write_json(bare / "results.json", {"ours_7": older, "ours_30": {**scores, **blocks, "protocol": protocol}})
    write_json(bare / "per_view.json", {"ours_30": {"PSNR": dict(zip(names, [11.11, 22.22, 33.33], strict=True))}})
    return bare


def report(out: Path, *options: str) -> Page:
    assert main(["report", str(out), *options]) == 0
    return Page((out / "report.html").read_text())


def test_nothing_is_loaded_and_nothing_runs(whole: Path) -> None:
    page = report(whole)
    assert page.elements <= ELEMENTS
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert len(page.addresses) == 9 + 2  # image, render, error of three views; the map and its scale
    assert not any(name.startswith("on") for name in page.attributes)
    # The hostile name occurs, as text.
    assert f"image {HOSTILE}" in page.alts
    assert f"/data/rubble-pixsfm/{HOSTILE}" in page.texts
    assert f"Worst: {HOSTILE}, 11.11 dB" in page.texts


def test_exported_pages_are_linked(bare: Path, tmp_path: Path) -> None:
    assert report(bare).addresses == []
    (bare / "export").mkdir()
    for name in ("index.html", "50% #1.html", "model.ply"):
        (bare / "export" / name).touch()
    assert report(bare).addresses == ["export/50%25%20%231.html", "export/index.html"]
    elsewhere = tmp_path / "reports" / "one.html"
    assert main(["report", str(bare), "-o", str(elsewhere)]) == 0
    assert Page(elsewhere.read_text()).addresses[1] == "../a%20run/export/index.html"


@pytest.mark.slow
def test_images_are_small(whole: Path) -> None:
    page = report(whole)
    jpegs = [address for address in page.addresses if address.startswith("data:image/jpeg")]
    assert len(jpegs) == 9
    for address in jpegs:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape == (round(40 * IMAGE_WIDTH / 1000), IMAGE_WIDTH, 3)


@pytest.mark.slow
def test_texts_tables_curves_and_map(whole: Path) -> None:
    page = report(whole)
    text = " ".join(page.texts)
    assert "a run: blocks, seed 5, 30 steps" in page.texts
    assert "Worst block: 0, 21.11 dB. Near borders 22.00 dB (25 % of the pixels), elsewhere 25.00 dB" in text
    assert "Change by merging: PSNR -0.1250." in text
    assert "Scored differently, so not shown: ours_7." in page.texts and "19.99" not in text
    assert {"block 0", "block 2", "l1"} <= set(page.texts)  # of the curves
    assert {"0: 21.11", "1: -", "3: 26.66"} <= set(page.texts)  # of the map
    assert ["blocks, n", "4"] in page.rows and ["anchors", "1,234,567"] in page.rows
    assert ["steps", "30", "60000"] in page.rows and not any(row[0] == "loss.dssim" for row in page.rows)
    # Every view once, the worst first.
    order = [text.split(":")[0] for text in page.texts if text.endswith(" dB") and text[:4] in ("Wors", "Best")]
    assert order == ["Worst"] * 3
    order = [text.split(",")[0] for text in report(whole, "--views", "1").texts if text.endswith(" dB")]
    assert [f"Worst: {HOSTILE}", "Best: 2.png"] == [title for title in order if title[:4] in ("Wors", "Best")]


def test_scores_are_compared_only_with_published_ones_of_the_same_kind(whole: Path) -> None:
    rows = report(whole).rows
    own = [row for row in rows if row[0] == "this run"]
    # The run is in the tables of raw and of corrected scores, without its LPIPS, which is of another network; it is not
    # in the table of publications that do not state which scores they give.
    assert [row[1:4] for row in own] == [["24.32", "0.654", "-"], ["25.43", "0.665", "-"]]
    raw, corrected = (rows[rows.index(row) : rows.index(row) + 3] for row in own)
    assert ["Momentum-GS", "25.77"] in [row[:2] for row in raw]
    assert ["Momentum-GS", "26.66"] in [row[:2] for row in corrected]


def test_scenes_without_published_numbers_say_so(whole: Path) -> None:
    page = report(whole, "--scene", "none")
    assert any(text.startswith("No published numbers are known for this scene") for text in page.texts)
    assert not any(row[0] == "Momentum-GS" for row in page.rows)


def test_every_missing_part_names_the_next_command(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quoted = f"'{bare}'"  # the folder has a space

    def next_commands() -> list[str]:
        return [text for text in report(bare).texts if text.startswith("momentum-gs")]

    config = bare / "config.yaml"
    assert f"momentum-gs train -c '{config}' -m {quoted}" in next_commands()
    assert any("events.jsonl is missing" in text for text in report(bare).texts)
    model = bare / "point_cloud" / "iteration_30"
    model.mkdir(parents=True)
    assert f"momentum-gs merge {quoted}" in next_commands()
    (model / "point_cloud.ply").touch()
    assert f"momentum-gs render {quoted}" in next_commands()
    (bare / "test" / "ours_30").mkdir(parents=True)
    assert f"momentum-gs eval {quoted}" in next_commands()
    assert main(["report", str(bare.parent / "nowhere")]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_blocks_are_drawn_where_they_were_scored(whole: Path) -> None:
    note = "Scored with the cells of another partition than that of training (render --cells)."
    assert note not in report(whole).texts
    eye = torch.eye(3, dtype=torch.float64)
    other = PartitionTable((-5.0, -5.0, -5.0, 5.0, 5.0, 5.0), (5, 1, 1), eye, [[]] * 5)
    other.save(whole / "test" / "ours_30" / "cells" / "partition.json")
    page = report(whole)
    assert note in page.texts and "2: -" in page.texts  # The middle one of five.


def test_a_coarse_run_has_no_blocks(whole: Path) -> None:
    (whole / "config.yaml").write_text(dump_config(replace(Config(), stage="coarse")))
    (whole / "results.json").unlink()
    page = report(whole)
    assert "A coarse run is one block." in page.texts
    assert not any("before the merge are not scored" in text for text in page.texts)


def test_history_of_a_resumed_run_and_of_one_that_is_running(tmp_path: Path) -> None:
    assert read_history(tmp_path) is None

    def step(number: int, l1: float) -> str:
        losses = {"0": {"l1": l1}, "1": {"l1": 3 * l1}}
        event = {"event": "StepDone", "step": number, "losses": losses, "anchors": {"0": 4, "1": 5}}
        return json.dumps(event) + "\n"

    path = tmp_path / "events.jsonl"
    start = json.dumps({"event": "RoundStarted", "step": 0, "blocks": [1, 0]}) + "\n"
    path.write_text(start + step(10, 1.0) + step(20, 2.0) + start + step(20, 5.0) + '{"event": "Ste')
    history = read_history(tmp_path)
    assert history is not None and history.k == 2
    assert history.losses == {"l1": {10: 2.0, 20: 10.0}}  # means over the blocks; the later of two counts
    assert history.anchors == {0: {10: 4, 20: 4}, 1: {10: 5, 20: 5}}
    path.write_text(start + "nonsense\n")
    with pytest.raises(UserError, match=r"events\.jsonl: line 2 is no event of training"):
        read_history(tmp_path)


def test_cameras_read_back(tmp_path: Path) -> None:
    scene = scene_of(3)
    write_cameras_json(tmp_path / "cameras.json", scene)
    for read, camera in zip(read_cameras_json(tmp_path / "cameras.json"), scene.train, strict=True):
        # float64 through JSON loses nothing, the translation is recomputed.
        assert torch.equal(read.rotation, camera.rotation)
        assert torch.allclose(read.center, camera.center, atol=1e-12, rtol=0)
        assert (read.name, read.width, read.height, read.fx) == (camera.name, camera.width, camera.height, camera.fx)
    (tmp_path / "cameras.json").write_text('[{"rotation": [[1]]}]')
    with pytest.raises(UserError, match="holds no cameras"):
        read_cameras_json(tmp_path / "cameras.json")


def test_published_rows_hold_what_their_group_says() -> None:
    for key in scene_keys():
        groups = published_scene(key).groups
        assert tuple(groups) == GROUPS
        for row in (row for rows in groups.values() for row in rows):
            assert row.psnr is None or 18 < row.psnr < 30
            assert all(share is None or 0.1 < share < 0.9 for share in (row.ssim, row.lpips))
        ours = [row.psnr for row in groups["corrected"] if row.method == "Momentum-GS"]
        assert len(ours) == 1
        # A correction that is fitted to the target image cannot lower PSNR: the same method is higher with it.
        raw = {row.method: row.psnr for row in groups["raw"]}
        for row in groups["corrected"]:
            if row.method in raw and row.method != "VastGaussian":
                assert row.psnr is not None and row.psnr > (raw[row.method] or 0) + 0.4
        # The rows that DOGS published are of images reduced six times; each has this note.
        assert all("six times" in row.notes[0] for row in groups["unstated"] if "NeRF" not in row.method)


def test_scene_by_the_innermost_folder() -> None:
    assert guess_scene("/data/Rubble/building-pixsfm/train") == "building"
    assert guess_scene("/data/sci-art-pixsfm") == guess_scene("/data/Sci_Art") == "sciart"
    assert guess_scene("/data/matrix_city/aerial/train") == "matrixcity"
    assert guess_scene("/data/my-building") is None


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.2, 7.7), (1e-7, 3e-7), (12345.0, 12346.0), (0.0, 60000.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    slack = 1e-9 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)
    step = (found[1] - found[0]) / 10 ** math.floor(math.log10(found[1] - found[0]) + 1e-9)
    assert min(abs(step - factor) for factor in (1, 2, 5)) < 1e-3


def test_a_chart_shows_its_values_with_a_bounded_number_of_points() -> None:
    rising = {step: float(step) for step in range(1000)}
    svg = line_chart({"a <b>": rising, "empty": {0: math.nan}, "one": {5: 7.0}}, "y")
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 1
    assert "a &lt;b&gt;" in svg and "empty" not in svg and "nan" not in svg
    points = [tuple(map(float, pair.split(","))) for pair in svg.split('points="')[1].split('"')[0].split()]
    assert len(points) == MAX_POINTS
    # A straight line stays straight: y falls as x grows, by the same on every step but for one rounded decimal.
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(points, points[20:], strict=False)]
    assert max(slopes) < 0 and max(slopes) - min(slopes) < 0.01
    assert line_chart({"a": {0: -1.0, 1: 0.0}}, "y", log=True) == ""  # no logarithm, no line
    assert "<polyline" in line_chart({"a": {0: 2.0, 1: 2.0}}, "y")  # a constant is drawn, too


def test_map_of_blocks_above_each_other_takes_the_worst() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    table = PartitionTable((-5.0, -5.0, -5.0, 5.0, 5.0, 5.0), (2, 1, 2), eye, [[]] * 4)
    scene = scene_of(4)
    svg = block_map(table, {0: 20.0, 1: 25.0, 2: 30.0, 3: None}, scene.train, scene.points.xyz)
    assert all(text in svg for text in ("0: 20.00", "2: 30.00", "1: 25.00", "3: -", "20.00 dB", "25.00 dB"))
    assert "30.00 dB" not in svg  # above a block of 20 dB, so the scale of colours ends below it
    assert svg.count('class="dot"') == 4


def test_a_coarse_run_from_training_to_report(tmp_path: Path) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    settings = [*SETTINGS, "stage=coarse", "steps=10", "log.every=5", "device=cpu"]
    assert main(["train", *BASE, "-s", str(scene), "-m", str(out), *settings]) == 0
    assert main(["render", str(out)]) == 0
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    record = json.loads((out / "results.json").read_text())["ours_10"]
    assert "blocks" not in record and "border" not in record and "merge_gap" not in record
    protocol = record["protocol"]
    assert (protocol["stage"], protocol["steps"], protocol["k"], protocol["n"]) == ("coarse", 10, 1, 1)
    assert protocol["training"]["ranks"] == 1 and protocol["training"]["peak_memory_bytes"] > 2**26
    page = report(out)
    assert {"LPIPS was left out; to add it: ", "A coarse run is one block."} <= set(page.texts)
    assert page.elements <= ELEMENTS and "polyline" in page.elements
