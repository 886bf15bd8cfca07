"""A run, or an export, as the viewer reads it: cameras, points, images, partition, scores and states of the model."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from momentum_gs.config.run import load_run_config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.frame import Frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.viewer_files import read_cameras_json
from momentum_gs.data.views import Views
from momentum_gs.eval.results import read_json
from momentum_gs.formats.read import read_splats
from momentum_gs.model.appearance import AppearanceTable, load_appearance
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.poses import load_poses
from momentum_gs.model.splats import Harmonics
from momentum_gs.train.checkpoint import block_steps, checkpoints, read_models
from momentum_gs.viewer.shown import Shown, join
from momentum_gs.viewer.upright import Upright, upright_cloud, upright_run

MERGED, BLOCKS, CHECKPOINT = "merged", "blocks before the merge", "checkpoint"
_IN_TIME = (CHECKPOINT, BLOCKS, MERGED)
"""The order in which they are written."""
_CACHE_BYTES = 256 << 20
"""Of target images: a few dozen are looked at in turn, and a decode takes a tenth of a second."""


@dataclass(frozen=True)
class State:
    """A saved model of a run."""

    iteration: int
    """Block steps."""
    kind: str
    """``MERGED``, ``BLOCKS`` or ``CHECKPOINT``."""
    step: int = 0
    """Global steps of a checkpoint."""

    @property
    def label(self) -> str:
        """As shown to the user."""
        if self.kind == CHECKPOINT:
            return f"step {self.step}, checkpoint"
        return f"iteration {self.iteration}, {self.kind}"


@dataclass(frozen=True)
class ViewerRun:
    """What the viewer knows of a run without its model. An export has no cameras, no partition and no states."""

    path: Path
    upright: Upright
    device_setting: str = "auto"
    white_background: bool = False
    cameras: tuple[Camera, ...] = ()
    """Training views, then held-out views; training coordinates."""
    held_out: frozenset[str] = frozenset()
    """Names of the held-out views."""
    points: PointCloud | None = None
    table: PartitionTable | None = None
    block_psnr: dict[int, float] = field(default_factory=dict)
    """Of the newest scores on held-out views, dB."""
    views: Views | None = None
    """Target images; None if the scene is not there."""
    appearance: AppearanceTable | None = None
    metres: float | None = None
    """Metres in one unit of the viewer; None if the scene does not say."""

    @property
    def name(self) -> str:
        """As shown to the user."""
        return self.path.name if self.path.suffix else f"{self.path.parent.name}/{self.path.name}"

    def states(self) -> list[State]:
        """Checkpoints and saved models in the order in which they were written; looked up anew, as training writes
        further ones and removes old checkpoints."""
        saved = [(step, block_steps(folder)) for step, folder in checkpoints(self.path / "checkpoint")]
        found = [State(done, CHECKPOINT, step) for step, done in saved if done is not None]
        for folder in (self.path / "point_cloud").glob("iteration_*"):
            number = folder.name.removeprefix("iteration_")
            if not number.isdecimal():
                continue
            if (folder / "point_cloud_block0.ply").exists():
                found.append(State(int(number), BLOCKS))
            if (folder / "point_cloud.ply").exists():
                found.append(State(int(number), MERGED))
        return sorted(found, key=lambda state: (state.iteration, _IN_TIME.index(state.kind), state.step))

    def load(self, state: State | None) -> Shown:
        """The model of a state, on the CPU; of an export (None) its only one.

        Raises:
            UserError: as ``load_model`` and ``read_models``.
        """
        if state is None:
            splats = read_splats(self.path)
            return Shown(splats, Harmonics(splats.sh_degree), torch.zeros(len(splats), dtype=torch.long))
        if state.kind == CHECKPOINT:
            models = read_models(self.path / "checkpoint" / f"step_{state.step}", load_run_config(self.path))
            return join([Shown(m, d, torch.full((len(m),), block)) for block, (m, d) in enumerate(models)])
        folder = model_folder(self.path, state.iteration)
        if state.kind == MERGED:
            model, decoder = load_model(model_file(folder))
            return Shown(model, decoder, self._blocks_of(model.position))
        parts: list[Shown] = []
        shared: Decoder | Harmonics | None = None
        for block in range(self.table.n if self.table else 1):
            model, decoder = load_model(model_file(folder, block))
            if not (folder / f"decoder_block{block}").is_dir():
                shared = decoder = shared or decoder  # One decoder for all, so that ``join`` need not keep several.
            parts.append(Shown(model, decoder, torch.full((len(model),), block, dtype=torch.long)))
        return join(parts)

    def trains(self, camera: Camera) -> list[int]:
        """The blocks that train on a view."""
        if self.table is None:
            return []
        return [block for block, names in enumerate(self.table.views) if camera.name in names]

    def _blocks_of(self, position: Tensor) -> Tensor:
        if self.table is None:
            return torch.zeros(len(position), dtype=torch.long)
        return self.table.cell_of(position.detach().double())


def open_run(path: Path, *, scene_path: str | None = None, device: str | None = None, up: str = "z") -> ViewerRun:
    """Reads a run's folder, or an exported PLY.

    Args:
        path: Output folder of a run, or a PLY file.
        scene_path: Where the scene is now, if it was moved.
        device: Overrides the run's setting.
        up: The axis of an export that points up.

    Raises:
        UserError: there is no run, or no model in it, or a file is damaged.
    """
    if path.is_file():
        means = read_splats(path).position
        return ViewerRun(path.resolve(), upright_cloud(means, up), device or "auto")
    path = path.resolve()
    config = load_run_config(path)
    if scene_path is not None:
        config = replace(config, scene=replace(config.scene, path=scene_path))
    scene: Scene | None
    try:
        scene = load_scene(config.scene)
    except UserError as error:
        warn(f"{error}; the viewer shows the run without images (name the scene with -s)")
        scene = None
    run = _with_scene(path, scene) if scene is not None else _without_scene(path)
    table, folder = path / "partition.json", _newest_folder(path)
    if folder is not None and (folder / "partition.json").is_file():
        table = folder / "partition.json"
    run = replace(
        run, device_setting=device or config.device, white_background=config.scene.white_background,
        table=PartitionTable.load(table) if config.stage == "blocks" and table.is_file() else None,
        block_psnr=_block_psnr(path), appearance=None if folder is None else load_appearance(folder),
    )  # fmt: skip
    poses = None if folder is None else load_poses(folder)
    if poses is not None:
        moved = tuple(c if c.name in run.held_out else poses.camera(c) for c in run.cameras)
        run = replace(run, cameras=moved)
    return run


def _newest_folder(path: Path) -> Path | None:
    try:
        return model_folder(path)
    except UserError:  # Nothing saved yet: a run that trains now.
        return None


def _with_scene(path: Path, scene: Scene) -> ViewerRun:
    cameras = (*scene.train, *scene.test)
    upright = upright_run(scene.frame, cameras, scene.points)
    metres = read_json(scene.path / "scene.json").get("unit_metres")
    return ViewerRun(
        path, upright, cameras=cameras, held_out=frozenset(camera.name for camera in scene.test), points=scene.points,
        views=Views(scene, _CACHE_BYTES, pick_device("cpu"), skip_bad=True),
        metres=None if metres is None else float(metres) * scene.frame.unit * upright.frame.unit,
    )  # fmt: skip


def _without_scene(path: Path) -> ViewerRun:
    """From the run's own copies of cameras and points, which are in training coordinates."""
    cameras = tuple(read_cameras_json(path / "cameras.json"))
    points = read_point_file(path / "input.ply")
    return ViewerRun(path, upright_run(_frame(path), cameras, points), cameras=cameras, points=points)


def _frame(path: Path) -> Frame:
    """The coordinates that a run recorded."""
    scene = load_run_config(path).scene
    if scene.axes is None or scene.unit == "auto":
        return Frame()
    return Frame(scene.offset or (0.0, 0.0, 0.0), scene.unit, scene.axes, normalized=True)


def _block_psnr(path: Path) -> dict[int, float]:
    """Block -> PSNR of the newest merged scores; empty if the run was not scored."""
    results = read_json(path / "results.json")
    methods = [(int(n), m) for m in results if (n := m.removeprefix("ours_")).isdecimal() and m != n]
    if not methods:
        return {}
    blocks = results[max(methods)[1]].get("blocks") or {}
    return {int(block): float(score["PSNR"]) for block, score in blocks.items() if score.get("PSNR") is not None}
