"""Exports the model of a run as explicit Gaussians, and measures what that costs."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from momentum_gs.bake.baking import bake_parts, choose
from momentum_gs.bake.contributions import Contributions, contributions
from momentum_gs.bake.fit import means_of
from momentum_gs.bake.refine import Teaching, refine
from momentum_gs.bake.shell import COUNT, background_shell, reach_of, shown_part
from momentum_gs.config.run import load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import device_use
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import normalized_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views
from momentum_gs.eval.lpips_metric import Lpips
from momentum_gs.eval.results import read_json, write_json
from momentum_gs.export.files import write_parts
from momentum_gs.export.html.page import read_page, write_page
from momentum_gs.export.lod import export_lod
from momentum_gs.export.placement import Placement, georeference, placement
from momentum_gs.export.price import Original, export_renderer, original_renderer, scores
from momentum_gs.formats.kinds import format_of
from momentum_gs.formats.packed import SPZ_LARGEST
from momentum_gs.formats.read import read_splats
from momentum_gs.formats.write import check_writer
from momentum_gs.model.appearance import load_appearance
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.lod import LOD_FILE
from momentum_gs.model.poses import load_poses
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import background_of, learned_background

PAGE = ".html"
"""Suffix of the static page (docs/static_page.md)."""
REFINED = 1 << 20
"""Gaussians that are refined at a time: 0.7 GB of values and Adam's moments at degree 3."""
_UNSPILLED = 1 << 26
"""Pixels of all training views together from which contributions are kept in files instead of in memory."""
_READS_SPZ = find_spec("gsply") is not None
"""Whether a page can be read back, as a browser decodes it, to be scored."""
_SHELL_SHARE = 10
"""With ``max_gaussians``, a background takes no more than a tenth of them."""


@dataclass(frozen=True)
class Options:
    """What is exported, and how."""

    sh_degree: int = 3
    """Degree of the colours' spherical harmonics, 0 to 3; that of explicit Gaussians is lowered if it is higher."""
    refine: int = 0
    """Steps of training after the bake."""
    crop: tuple[float, float, float, float, float, float] | None = None
    """Box that holds the centres of the exported Gaussians: x0, y0, z0, x1, y1, z1 in the scene's coordinates."""
    blocks: tuple[int, ...] | None = None
    """Blocks in whose cells the centres of the exported Gaussians are."""
    max_gaussians: int | None = None
    """Export at most this many, those that contribute most."""
    y_up: bool = False
    """Rotate the scene so that up is y."""
    georeference: bool = False
    """Record the scene's place on the Earth."""
    lod: bool = False
    """Also write levels of detail (``export_lod``)."""
    shell: bool = True
    """Write a learned background as far Gaussians around the scene (``bake/shell.py``), where the file is a whole
    model."""

    def __post_init__(self) -> None:
        if self.lod and (self.crop is not None or self.blocks is not None):
            raise UserError("export: --lod with --crop or --blocks, expected levels of the whole model; leave one out")


@dataclass(frozen=True)
class _Run:
    """A finished run, loaded."""

    config: Config
    folder: Path
    scene: Scene
    cameras: list[Camera]
    """Training views, with refined poses if the run has them."""
    original: Original

    @property
    def n_offsets(self) -> int:
        return len(self.original.model) * self.original.model.n_offsets


def export_run(
    out: Path,
    files: Sequence[Path],
    options: Options,
    device: torch.device,
    *,
    iteration: int = -1,
    scene_path: str | None = None,
    lpips: Lpips | None = None,
) -> list[dict[str, Any]]:
    """Bakes the merged (or coarse) model of a run, writes it, and scores model and files on the held-out views.

    Args:
        out: Output folder of the run.
        files: Each one's suffix chooses its format (``FORMATS``, or ``PAGE``); its folder is created. ``file.json`` is
            written beside it. Of several, the Gaussians are baked once and held in memory.
        options: What is exported.
        device: Where it is rendered.
        iteration: Which model; -1: the last.
        scene_path: Folder of the scene, if it has moved.
        lpips: Also scores LPIPS.

    Returns:
        The content of each JSON file (docs/export.md).

    Raises:
        UserError: there is no merged model, or options do not fit the run.
    """
    started = time.perf_counter()
    run = _load(out, iteration, scene_path, device)
    about = georeference(run.scene) if options.georeference else None
    where = placement(run.scene, y_up=options.y_up)
    inside = _inside(run, options)
    for file in files:
        if file.suffix != PAGE:
            check_writer(file)
        file.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with (
        Views(run.scene, int(run.config.scene.cache_gb * 1e9), device) as views,
        tempfile.TemporaryDirectory(dir=files[0].parent, prefix=".export.") as spill,
    ):
        seen = _seen(run, views, Path(spill))
        degree = _degree(run, options)
        shells = _shells(run, files, options, seen, degree, where)
        most = options.max_gaussians
        chosen = choose(seen, most if most is None else most - max(map(_count, shells)), inside)
        if len(chosen) == 0:
            raise UserError("export: no Gaussian is left, expected some in the crop; correct --crop or --blocks")
        parts: Iterable[Splats] = _parts(run, options, seen, chosen, inside, views, degree)
        if len(files) > 1:
            parts = list(parts)
        baked = time.perf_counter() - started
        model = None
        for file, shell in zip(files, shells, strict=True):
            begun = time.perf_counter()
            written, shown = _write(file, out, run, parts, shell, len(chosen), degree, where)
            seconds = baked + time.perf_counter() - begun
            record = _record(run, written, options, len(chosen), degree, shell) | {"coordinates": where.record()}
            record |= _price(run, file, where, inside, views, lpips, shown, model)
            model = record["model"]
            if options.lod:
                record["lod"] = _lod(run, out, file, where, views, len(chosen))
            record["seconds"] = {"export": seconds, "scores": time.perf_counter() - begun + baked - seconds}
            record |= {"georeference": about, **device_use(device)}
            write_json(json_file(file), record)
            records.append(record)
    return records


def json_file(file: Path) -> Path:
    """The JSON file beside an exported file."""
    return file.with_name(f"{file.name}.json")


def _load(out: Path, iteration: int, scene_path: str | None, device: torch.device) -> _Run:
    config = load_run_config(out)
    if scene_path is not None:
        config = replace(config, scene=replace(config.scene, path=scene_path))
    folder = model_folder(out, iteration)
    ply = model_file(folder)
    scene = load_scene(config.scene)
    poses = load_poses(folder)
    cameras = scene.train if poses is None else [poses.camera(camera) for camera in scene.train]
    if not cameras:
        raise UserError(f"{scene.path}: no training views, expected those that the run was trained with; see -s")
    model, decoder = load_model(ply)
    background = torch.full((3,), float(config.scene.white_background), device=device)
    original = Original(model.to(device), decoder.to(device).eval(), background)
    return _Run(config, folder, scene, cameras, original)


def _seen(run: _Run, views: Views, folder: Path) -> Contributions:
    """What each offset contributes to the pixels of the training views that count, as in training."""
    pixels = sum(camera.width * camera.height for camera in run.cameras)
    spill = folder if pixels > _UNSPILLED else None
    return contributions(run.original.model, run.original.decoder, run.cameras, spill, views.counts)


def _shells(
    run: _Run, files: Sequence[Path], options: Options, seen: Contributions, degree: int, where: Placement
) -> list[Splats | None]:
    """For each file the Gaussians that show the learned background; None without one, and where they would be in the
    way."""
    none: list[Splats | None] = [None] * len(files)
    learned, model = background_of(run.original.decoder), run.original.model
    is_part = options.crop is not None or options.blocks is not None
    if not options.shell or learned is None or is_part or all(file.suffix == PAGE for file in files):
        return none  # A page draws the colour itself; parts are joined with others.
    if options.max_gaussians is not None and options.max_gaussians < _SHELL_SHARE * COUNT:
        info(f"export: at most {options.max_gaussians} Gaussians, so none of them show the background")
        return none
    weight = seen.total.view(len(model), -1).sum(dim=1)
    shell = background_shell(learned, *reach_of(model.position, weight, run.cameras), sh_degree=degree)
    too_large = float(shell.log_scale.detach().max()) + math.log(where.unit) > SPZ_LARGEST
    if too_large and any(_suffix(file) == ".spz" for file in files):
        info("export: the scene is too large for an .spz with Gaussians that show the background; it has none")
    shell = shown_part(shell, model, run.original.decoder, run.cameras)
    without = {PAGE, ".spz"} if too_large else {PAGE}
    return [None if _suffix(file) in without else shell for file in files]


def _suffix(file: Path) -> str:
    return PAGE if file.suffix == PAGE else format_of(file)


def _count(shell: Splats | None) -> int:
    return 0 if shell is None else len(shell)


def _inside(run: _Run, options: Options) -> Bool[Tensor, "nk"] | None:
    """Which offsets (or splats) are inside the crop and the blocks, on the CPU; None: all."""
    if options.crop is None and options.blocks is None:
        return None
    model = run.original.model
    if isinstance(model, Splats):
        means = model.position.detach().cpu()
    else:
        means = torch.cat([means_of(model, part).cpu() for part in torch.arange(run.n_offsets).split(REFINED)])
    inside = torch.ones(run.n_offsets, dtype=torch.bool)
    if options.crop is not None:
        low, high = torch.tensor(options.crop, dtype=torch.float64).view(2, 3)
        if not bool((low < high).all()):
            raise UserError(
                f"export: --crop is {options.crop}, expected x0,y0,z0,x1,y1,z1 with x0 < x1, y0 < y1 and z0 < z1"
            )
        points = run.scene.frame.scene_points(means)
        inside &= ((points >= low) & (points < high)).all(dim=1)
    if options.blocks is not None:
        table = _table(run)
        wrong = [block for block in options.blocks if not 0 <= block < table.n]
        if wrong:
            raise UserError(f"export: --blocks names block {wrong[0]}, expected 0 to {table.n - 1}; correct it")
        inside &= torch.isin(table.cell_of(means.double()), torch.tensor(options.blocks))
    return inside


def _table(run: _Run) -> PartitionTable:
    path = run.folder / "partition.json"
    if not path.is_file():
        raise UserError(f"{path}: missing, so the model has no blocks; leave out --blocks, or use --crop")
    return PartitionTable.load(path)


def _degree(run: _Run, options: Options) -> int:
    model = run.original.model
    return min(options.sh_degree, model.sh_degree) if isinstance(model, Splats) else options.sh_degree


def _parts(
    run: _Run,
    options: Options,
    seen: Contributions,
    chosen: Int[Tensor, "g"],
    inside: Bool[Tensor, "nk"] | None,
    views: Views,
    degree: int,
) -> Iterator[Splats]:
    """The chosen Gaussians in training units, part by part."""
    model, decoder = run.original.model, run.original.decoder
    if isinstance(model, Splats):
        if options.refine:
            raise UserError("export: --refine is for models of anchors, found explicit Gaussians; leave it out")
        for part in chosen.split(REFINED):
            splats = model.subset(part.to(model.position.device))
            yield replace(splats, sh_rest=splats.sh_rest[:, : (degree + 1) ** 2 - 1])
        return
    assert not isinstance(decoder, Harmonics), "anchors have a decoder"
    if not options.refine:
        for _, splats in bake_parts(model, decoder, run.cameras, seen, chosen, sh_degree=degree):
            yield splats
        return
    teaching = Teaching(
        model,
        decoder,
        run.cameras,
        run.original.background,
        views.target_or_skip,
        load_appearance(run.folder),
        run.config.loss,
        run.config.gaussians,
        (seen.total == 0).to(model.position.device) if run.scene.mask_paths else None,
    )
    for part in chosen.split(REFINED):
        splats = Splats.cat(
            [baked for _, baked in bake_parts(model, decoder, run.cameras, seen, part, sh_degree=degree)]
        )
        hidden = None
        if len(part) < len(chosen) or inside is not None:
            # The part's own offsets, and those inside the crop that are not exported.
            hidden = torch.ones(run.n_offsets, dtype=torch.bool) if inside is None else inside.clone()
            hidden[chosen] = False
            hidden[part] = True
            hidden = hidden.to(model.position.device)
        first, last = int(part[0]), int(part[-1]) + 1
        views_of_part = zip(run.cameras, seen.views, strict=True)
        showing = [camera for camera, view in views_of_part if len(view.between(first, last)[0])]
        taught = replace(teaching, cameras=showing)
        yield refine(splats, taught, options.refine, hidden=hidden, seed=run.config.seed)


def _write(
    file: Path, out: Path, run: _Run, parts: Iterable[Splats], shell: Splats | None, count: int, degree: int,
    where: Placement,
) -> tuple[list[Path], Splats | None]:  # fmt: skip
    """The files written, and of a page the Gaussians that it shows, in training units."""
    if file.suffix != PAGE:
        behind = [] if shell is None else [shell]
        write_parts(file, (where.placed(part) for part in chain(parts, behind)), count + _count(shell), degree)
        return [file], None
    shown = Splats.cat(list(parts))
    files = _write_page(file, out, run, shown)
    return files, read_page(files, run.cameras).to(run.original.background.device) if _READS_SPZ else shown


def _write_page(file: Path, out: Path, run: _Run, splats: Splats) -> list[Path]:
    """Writes the static page, with the cameras, the cells and their scores; the page and the files beside it."""
    cameras, scene, decoder = run.cameras, run.scene, run.original.decoder
    behind = learned_background(decoder, cameras[0], run.original.background)
    color = run.original.background if behind is None else behind.mean(dim=(1, 2))
    cells = run.folder / "partition.json"
    results = read_json(out / "results.json").get(f"ours_{run.folder.name.removeprefix('iteration_')}", {})
    scores = {int(b): row["PSNR"] for b, row in results.get("blocks", {}).items() if row.get("PSNR") is not None}
    return write_page(
        file, splats.to("cpu"), cameras, title=scene.path.name,
        up=normalized_frame([*scene.train, *scene.test], scene.points).rotation[2],
        cells=PartitionTable.load(cells).in_frame(scene.frame) if cells.is_file() else None, scores=scores,
        background=color.tolist(),
    )  # fmt: skip


def _record(
    run: _Run, files: list[Path], options: Options, count: int, degree: int, shell: Splats | None
) -> dict[str, Any]:
    learned = background_of(run.original.decoder)
    model = run.original.model
    return {
        "file": files[0].name,
        "bytes": sum(file.stat().st_size for file in files),
        "gaussians": count,
        "anchors": None if isinstance(model, Splats) else len(model),
        "offsets": run.n_offsets,
        "options": {**asdict(options), "sh_degree": degree},
        "training_views": len(run.cameras),
        # Beside those above, and behind them; without any, a viewer has to be given the colour.
        "background_gaussians": _count(shell),
        "background": run.original.background.tolist() if learned is None else None,
        "background_harmonics": None if learned is None else learned.sh.tolist(),
    }


def _price(
    run: _Run, file: Path, where: Placement, inside: Bool[Tensor, "nk"] | None, views: Views, lpips: Lpips | None,
    shown: Splats | None, model: dict[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    """The scores of the model, unless they are known, and of the file, on the held-out views or, without any, on the
    training views.

    The file is drawn over the background of the model and, where that is not black, over black, as viewers do that were
    not given it (a page is).
    """
    split, cameras = ("test", run.scene.test) if run.scene.test else ("train", run.cameras)
    covered = None if inside is None else inside.to(run.original.background.device)
    if model is None:
        model = scores(cameras, views, original_renderer(run.original), lpips)
    export = scores(cameras, views, export_renderer(file, where, run.original, covered, shown), lpips)
    alone = None
    has_background = background_of(run.original.decoder) is not None or bool(run.original.background.any())
    if covered is None and shown is None and has_background:
        alone = scores(cameras, views, export_renderer(file, where, run.original, None, on_black=True), lpips)
    return {
        "split": split,
        "views": len(cameras),
        "model": model,
        "export": export,
        "export_on_black": alone,
        "lost": {name: model[name] - export[name] for name in model},
        # Outside of a crop, the trained model itself is rendered.
        "scored_with_model_outside_crop": covered is not None,
        # Then the page's quantization is not in the scores.
        "scored_before_quantization": shown is not None and not _READS_SPZ,
    }


def _lod(
    run: _Run, out: Path, file: Path, where: Placement, views: Views, count: int
) -> list[dict[str, Any]]:
    """Levels of detail of the file's first ``count`` Gaussians, and their scores on the held-out views or, without any,
    on the training views. The Gaussians that follow show the background."""

    def score(render: Callable[[Camera], Tensor]) -> dict[str, float]:
        return scores(run.scene.test or run.cameras, views, render, None)

    read = where.back(read_splats(file))
    splats, shell = (read.subset(rows) for rows in torch.arange(len(read)).tensor_split([count]))
    return export_lod(out / LOD_FILE, file, splats, where, run.cameras, run.original, score, shell)
