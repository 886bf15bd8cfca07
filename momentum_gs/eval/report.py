"""The HTML report of a run: settings, scores beside published ones, curves, and the best and worst blocks and views.

Everything is read from the run's folder. A part whose files are missing is replaced by the command that makes them.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from momentum_gs.config.load import config_to_dict, flat_settings
from momentum_gs.config.schema import Config
from momentum_gs.data.images import image_size, read_image
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.viewer_files import read_cameras_json
from momentum_gs.eval.block_map import block_map
from momentum_gs.eval.history import History, read_history
from momentum_gs.eval.lpips_metric import NETS, metric_name
from momentum_gs.eval.metrics import error_map
from momentum_gs.eval.page import (
    Html,
    beside,
    drawing,
    heading,
    image,
    link,
    missing,
    note,
    page,
    section,
    table,
    text,
)
from momentum_gs.eval.published import PublishedScene, published_scene, scene_keys
from momentum_gs.eval.record import scored_alike
from momentum_gs.eval.results import read_json, result_files
from momentum_gs.eval.svg import line_chart
from momentum_gs.eval.table import Row, differences, percent
from momentum_gs.partition.coverage import SEEN_BY

IMAGE_WIDTH = 480
"""Largest width of embedded images in pixels: three fill the page, and 18 of them take at most one or two megabytes."""
JPEG_QUALITY = 80
MAP_POINTS = 30_000
"""Largest number of sparse points from which the extent of the map is found."""
_GROUP_NAMES = {
    "raw": "Raw",
    "corrected": "After colour correction to the images",
    "unstated": "Colour correction not stated by the source",
}


@dataclass(frozen=True)
class Run:
    """What the page is made from."""

    out: Path
    config: Config
    split: str
    method: str | None
    """ours_N, the model that the page is about; None before any rendering."""
    results: dict[str, Any]
    per_view: dict[str, Any]
    history: History | None

    @property
    def record(self) -> dict[str, Any]:
        """The scores of ``method``; empty if there are none."""
        return self.results.get(self.method or "", {})

    @property
    def protocol(self) -> dict[str, Any]:
        """How ``record`` was scored."""
        return self.record.get("protocol", {})

    def partition(self) -> PartitionTable | None:
        """The partition of the model's training, or of the settings if there is no model yet; None if it is missing."""
        folder = self.out / "point_cloud" / f"iteration_{(self.method or '').removeprefix('ours_')}"
        return _first_table(folder / "partition.json", Path(self.config.partition.file or self.out / "partition.json"))

    def cells(self) -> PartitionTable | None:
        """The partition whose cells the scores by block use; None without such scores, or in old renders."""
        return _first_table(self.out / self.split / str(self.method) / "cells" / "partition.json")

    def command(self, command: str, *options: str) -> tuple[str, ...]:
        """The words of a command line for this run."""
        return ("momentum-gs", command, str(self.out), *options)

    def next_command(self) -> tuple[str, ...]:
        """The next command on the way from an unscored run to its scores."""
        models = list((self.out / "point_cloud").glob("iteration_*"))
        split = () if self.split == "test" else ("--split", self.split)
        if not models:
            return ("momentum-gs", "train", "-c", str(self.out / "config.yaml"), "-m", str(self.out))
        if not any((model / "point_cloud.ply").exists() for model in models):
            return self.command("merge")
        return self.command("render" if self.method is None else "eval", *split)


def _first_table(*paths: Path) -> PartitionTable | None:
    return next((PartitionTable.load(path) for path in paths if path.exists()), None)


def load_run(out: Path, config: Config, split: str, iteration: int | None) -> Run:
    """Reads the available results of a run; by default of its last iteration."""
    results_file, per_view_file = result_files(out, split)
    results, per_view = read_json(results_file), read_json(per_view_file)
    names = {*results, *(path.name for path in (out / split).glob("ours_*"))}
    merged = sorted((name for name in names if name.removeprefix("ours_").isdecimal()), key=lambda name: int(name[5:]))
    if iteration is not None:
        merged = [name for name in merged if name == f"ours_{iteration}"]
    return Run(out, config, split, merged[-1] if merged else None, results, per_view, read_history(out))


def report_page(run: Run, scene: str | None, n_views: int, folder: Path | None = None) -> Html:
    """The document.

    Args:
        run: The run.
        scene: One of ``scene_keys()`` whose published numbers to show; None: no paper has this scene.
        n_views: Views to show of the worst and of the best.
        folder: Where the document will be, from which its links lead to exported pages; None: the run's own folder.
    """
    return page(
        f"{run.out.resolve().name}: {run.config.stage}, seed {run.config.seed}, {run.config.steps} steps",
        [
            _about(run),
            *_exported(run, folder or run.out),
            section("Scores", *_scores(run)),
            section("Published numbers", *_published(run, None if scene is None else published_scene(scene))),
            section("Blocks", *_blocks(run)),
            section("Training", *_curves(run)),
            section("Views", *_views(run, n_views)),
            section("Settings", *_settings(run.config)),
        ],
    )


def _about(run: Run) -> Html:
    protocol = run.protocol
    facts = {
        "scene": run.config.scene.path,
        "blocks, n": _count(protocol.get("n")),
        "active blocks, k": _count(protocol.get("k")),
        "anchors": _count(protocol.get("anchors")),
        "Gaussians": _count(protocol.get("gaussians")),
        "Gaussians drawn, mean per view": _count(protocol.get("gaussians_drawn_per_view")),
        "files of the model": _bytes(protocol.get("storage_bytes")),
        "rendering": _speed(protocol),
        "peak memory of rendering": _bytes(protocol.get("peak_memory_bytes")),
        "training": _training(protocol.get("training") or {}),
        "rendered by": protocol.get("rendered_by"),
        "settings, SHA-256": protocol.get("config_sha256"),
    }
    return table((), [(name, value) for name, value in facts.items() if value not in (None, "-")], words=True)


def _exported(run: Run, folder: Path) -> list[Html]:
    """Links to the pages that show the model, which the export wrote."""
    pages = sorted((run.out / "export").glob("*.html"))
    addresses = (os.path.relpath(file, folder).replace(os.sep, "/") for file in pages)
    return [link("The model in 3D", address) for address in addresses]


def _scores(run: Run) -> list[Html]:
    if "protocol" not in run.record:
        return [missing("This run is not scored yet; next:", *run.next_command())]
    nets = [name for name in map(metric_name, NETS) if name in run.record] or ["LPIPS"]
    own = Row(str(run.out), str(run.method), run.record)
    alike = {
        method: record
        for method, record in run.results.items()
        if "protocol" in record and not differences(own, Row(own.run, method, record))
    }
    parts = []
    for suffix, title in (("", _GROUP_NAMES["raw"]), ("_cc", _GROUP_NAMES["corrected"])):
        metrics = [(f"PSNR{suffix}", 2), (f"SSIM{suffix}", 4), *((net + suffix, 4) for net in nets)]
        rows = [
            [method, *(_number(record.get(metric), digits) for metric, digits in metrics)]
            for method, record in alike.items()
        ]
        parts += [heading(title), table(["method", *(metric.removesuffix("_cc") for metric, _ in metrics)], rows)]
    parts += _fitted_and_covered(run, alike, nets)
    protocol = run.protocol
    views = f"{run.split} views: {_sizes(protocol)}; list {protocol['view_list_sha256'][:8]}"
    parts.append(note(f"{views}. ours_N_blocks: before the merge."))
    if others := [method for method in run.results if method not in alike]:
        parts.append(note(f"Scored differently, so not shown: {', '.join(others)}."))
    lpips = protocol.get("lpips")
    if lpips is None:
        parts.append(missing("LPIPS was left out; to add it:", *run.command("eval", "--lpips", "vgg")))
    else:
        parts.append(note(f"LPIPS: {lpips['net']}, {lpips['package']}; input: {lpips['input_range']}."))
    gap = run.record.get("merge_gap")
    if gap is not None:
        gaps = ", ".join(f"{name} {value:+.4f}" for name, value in gap.items())
        parts.append(text(f"Change by merging: {gaps}."))
    elif run.config.stage == "blocks":
        rendered = (run.out / run.split / f"{run.method}_blocks").exists()
        command = run.command("eval") if rendered else run.command("render", "--blocks")
        parts.append(missing("The blocks before the merge are not scored; next:", *command))
    return parts


def _fitted_and_covered(run: Run, alike: Mapping[str, Mapping[str, Any]], nets: Sequence[str]) -> list[Html]:
    """The tables of fitted scores and of scores over covered pixels."""
    parts = []
    if fitted := {method: record for method, record in alike.items() if "PSNR_fit" in record}:
        metrics = [("PSNR_fit", 2), ("SSIM_fit", 4), *((f"{net}_fit", 4) for net in nets), ("PSNR_right", 2)]
        rows = [
            [name, *(_number(record.get(key), digits) for key, digits in metrics)] for name, record in fitted.items()
        ]
        parts += [
            heading("Right half, colours fitted on the left half"),
            table(["method", "PSNR", "SSIM", *nets, "PSNR of that half, raw"], rows),
        ]
    parts.append(heading(f"Pixels whose surface at least {SEEN_BY} training views see, raw"))
    own = run.protocol.get("covered_sha256")
    if own is None:
        return [*parts, missing("Not scored; run eval again after:", *run.command("render", "--covered"))]
    covered = {method: record for method, record in alike.items() if record["protocol"].get("covered_sha256") == own}
    rows = [
        [name, _number(record.get("PSNR_covered"), 2), percent(record["covered_share"])]
        for name, record in covered.items()
    ]
    return [*parts, table(["method", "PSNR", "% of the pixels"], rows)]


def _published(run: Run, scene: PublishedScene | None) -> list[Html]:
    if scene is None:
        return [
            text(
                "No published numbers are known for this scene. If its folder merely has another name, give --scene: "
                f"{', '.join(scene_keys())}."
            )
        ]
    parts = [
        text(
            f"{scene.title} in the papers: {scene.setting}. This run: {_sizes(run.protocol) or 'not scored'}. "
            "Scores at different image sizes are not comparable, nor are those of different groups below."
        )
    ]
    for group, rows in scene.groups.items():
        if not rows:
            continue
        own = []
        if group != "unstated" and "protocol" in run.record:
            suffix = "" if group == "raw" else "_cc"
            scores = (run.record.get(f"{metric}{suffix}") for metric in ("PSNR", "SSIM", "LPIPS"))
            own = [["this run", *map(_number, scores, (2, 3, 3)), "", ""]]
        printed = [
            [row.method, *map(_number, (row.psnr, row.ssim, row.lpips), (2, 3, 3)), row.source, " ".join(row.notes)]
            for row in rows
        ]
        columns = ["method", "PSNR", "SSIM", "LPIPS", "source", "notes"]
        parts += [heading(_GROUP_NAMES[group]), table(columns, [*own, *printed], own=len(own))]
    parts.append(note("LPIPS is with VGG unless another network is named; for this run, '-' if another was used."))
    return parts


def _blocks(run: Run) -> list[Html]:
    blocks: dict[str, Any] = run.record.get("blocks", {})
    if run.config.stage == "coarse" and not blocks:
        return [text("A coarse run is one block.")]
    parts = []
    if blocks:
        worst, border, interior = (run.record[name] for name in ("worst_block", "border", "interior"))
        parts.append(
            text(
                f"Worst block: {worst['block']}, {_number(worst['PSNR'], 2)} dB. Near borders "
                f"{_number(border['PSNR'], 2)} dB ({100 * border['share']:.0f} % of the pixels), elsewhere "
                f"{_number(interior['PSNR'], 2)} dB. Raw, over all pixels in the {run.split} views that show the block."
            )
        )
        unmerged = run.results.get(f"{run.method}_blocks", {})
        before = unmerged.get("blocks", {}) if scored_alike(unmerged, run.record) else {}
        rows = [
            [block, _number(scores["PSNR"], 2), _number(before.get(block, {}).get("PSNR"), 2), f"{scores['pixels']:,}"]
            for block, scores in blocks.items()
        ]
        parts.append(table(["block", "PSNR", "before the merge", "pixels"], rows))
    else:
        parts.append(missing("No scores by block; run eval again after:", *run.command("render")))
    cameras = run.out / "cameras.json"
    trained, scored = run.partition(), run.cells()
    if trained is not None and scored is not None and trained.cells_sha256 != scored.cells_sha256:
        parts.append(note("Scored with the cells of another partition than that of training (render --cells)."))
    shown = scored or trained
    if shown is None or not cameras.exists():
        parts.append(missing("No map: partition.json or cameras.json is missing."))
        return parts
    points = run.out / "input.ply"
    cloud = read_point_file(points, MAP_POINTS).xyz if points.exists() else torch.zeros(0, 3, dtype=torch.float64)
    psnr = {int(block): scores["PSNR"] for block, scores in blocks.items()}
    parts.append(drawing(block_map(shown, psnr, read_cameras_json(cameras), cloud)))
    parts.append(note("Seen from above: cells coloured by the PSNR of their block (grey: no score), cameras as dots."))
    return parts


def _curves(run: Run) -> list[Html]:
    history = run.history
    if history is None:
        return [missing("No training curves: events.jsonl is missing.")]
    charts: Sequence[tuple[str, Mapping[Any, Mapping[int, float]], bool, str]] = (
        ("Losses, mean over the active blocks", history.losses, True, "no step was recorded (log.every)"),
        ("Anchors, or Gaussians of an explicit model", history.anchors, False, "no step was recorded (log.every)"),
        ("PSNR on training views, dB", history.psnr, False, "blocks were not measured (weighting.enabled)"),
        ("Weight of the block's loss", history.weight, False, "blocks were not measured (weighting.enabled)"),
        ("PSNR on held-out views while training, dB", history.held_out, False, "not asked for (log.test_every)"),
    )
    parts = []
    for title, curves, log, reason in charts:
        named = {
            f"block {key}" if isinstance(key, int) else key: curves[key]
            for key in (sorted(curves) if log is False else curves)
        }
        svg = line_chart(named, title, log=log)
        parts += [heading(title), drawing(svg) if svg else text(f"None: {reason}.")]
    return parts


def _views(run: Run, n_views: int) -> list[Html]:
    psnr = {name: v for name, v in run.per_view.get(run.method or "", {}).get("PSNR", {}).items() if v is not None}
    if not psnr:
        return [missing("No scores of single views; next:", *run.next_command())]
    order = sorted(psnr, key=lambda name: (psnr[name], name))
    worst = order[:n_views]
    best = [name for name in order[::-1][:n_views] if name not in worst]
    parts = [note("From left: target image, render, absolute error (white: at least a quarter of the range).")]
    for title, names in (("Worst", worst), ("Best", best)):
        for name in names:
            parts += [heading(f"{title}: {name}, {psnr[name]:.2f} dB"), _triple(run, name)]
    return parts


def _triple(run: Run, name: str) -> Html:
    folder = run.out / run.split / str(run.method)
    paths = folder / "gt" / name, folder / "renders" / name
    if not all(path.is_file() for path in paths):
        return missing("Its images are missing; to render them again:", *run.command("render"))
    truth, render = (read_image(path, *image_size(path)).float() / 255 for path in paths)
    return beside(
        [
            image(_jpeg(pixels), f"{what} {name}")
            for what, pixels in (("image", truth), ("render", render), ("error", error_map(render, truth)))
        ]
    )


def _jpeg(image: Tensor) -> str:
    """An image [3,H,W] in [0, 1] as a data URI, at most ``IMAGE_WIDTH`` wide."""
    pixels = cv2.cvtColor((image * 255).round().byte().permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2BGR)
    height, width = pixels.shape[:2]
    if width > IMAGE_WIDTH:
        size = IMAGE_WIDTH, max(1, round(height * IMAGE_WIDTH / width))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _settings(config: Config) -> list[Html]:
    here, default = (flat_settings(config_to_dict(one)) for one in (config, Config()))
    rows = [[name, str(here[name]), str(default[name])] for name in here if here[name] != default[name]]
    return [
        text("Settings that differ from configs/base.yaml."),
        table(["setting", "this run", "default"], rows, words=True),
    ]


def _sizes(protocol: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} of {size}" for size, count in protocol.get("resolution", {}).items())


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _count(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.1f} MiB"


def _training(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "-"
    memory = f"{_bytes(facts['peak_memory_bytes'])} ({facts['peak_memory_of']})"
    return f"{facts['seconds']:.0f} s on {facts['ranks']} x {facts['device']}, {memory}; {facts['code']}"


def _speed(protocol: Mapping[str, Any]) -> str:
    speed = protocol.get("views_per_second")
    if speed is None:
        return "-"
    return f"{speed:.2f} views/s ({protocol.get('device')}; {protocol.get('timed_views')} views, without warm-up)"
