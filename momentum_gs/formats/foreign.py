"""Models that other programs trained: what a file or a run folder of theirs holds, in the scene's own coordinates."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from momentum_gs.config.schema import NEEDS_ANCHORS
from momentum_gs.core.errors import UserError
from momentum_gs.formats.kinds import FORMATS, is_splat_file
from momentum_gs.formats.official import has_official_decoder, read_official_decoder
from momentum_gs.formats.read import read_splats
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import DECODER_FILE, load_ply, model_file, model_folder
from momentum_gs.model.ply import number_names, read_vertices
from momentum_gs.model.splats import Splats

_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".pkl")
_KNOWN = ("x", "y", "z", "nx", "ny", "nz", "opacity")
_NUMBERED = ("f_offset_", "f_anchor_feat_", "scale_", "rot_")


@dataclass(frozen=True)
class Foreign:
    """A model of another program, on the CPU, in the coordinates of the scene's files."""

    model: Anchors | Splats
    decoder: GaussianDecoder | None
    """Of anchors; None: explicit Gaussians."""
    settings: dict[str, Any]
    """What it says about itself, as settings by dotted name."""
    iteration: int
    """Steps that it was trained, where the folder says so; otherwise 1."""
    about: str
    """What it is, for messages."""


def read_foreign(source: Path, iteration: int = -1, appearance: int | None = None) -> Foreign:
    """A file of Gaussians (``FORMATS``), or the output folder of 3DGS, CityGaussian, Scaffold-GS or Momentum-GS.

    Args:
        source: The file, the output folder, or its ``point_cloud/iteration_<N>``.
        iteration: Of an output folder: which iteration; -1 is the last.
        appearance: Of a model with appearance codes: which one to keep; None: their mean.

    Raises:
        UserError: there is no such model, or it cannot be read safely.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder, expected a model of another program; check the path")
    if source.is_file():
        return _file(source)
    folder = source if (source / "point_cloud.ply").is_file() else model_folder(source, iteration)
    if (folder / DECODER_FILE).is_file():
        raise UserError(
            f"{source}: a run of momentum-gs ({DECODER_FILE}), expected a model of another program; use it as it is, "
            "e.g. with partition.coarse"
        )
    ply = model_file(folder)
    root = folder.parent.parent if folder.parent.name == "point_cloud" else folder
    settings = read_cfg_args(root / "cfg_args")
    number = folder.name.removeprefix("iteration_")
    steps = max(int(number), 1) if number.isdecimal() else 1
    if not has_official_decoder(folder):
        return _gaussians(read_splats(ply), settings, steps, f"Gaussians of {source}")
    anchors = _anchors(ply)
    decoder, codes = read_official_decoder(folder, anchors.feature_dim, anchors.n_offsets, appearance)
    about = f"anchors of {source}"
    if codes:
        which = "the mean" if appearance is None else f"number {appearance}"
        about += f" with {which} of its {codes} appearance codes"
    flags = {f"model.{name}": decoder.architecture[name] for name in
             ("feature_dim", "n_offsets", "use_feature_bank", "add_opacity_dist", "add_cov_dist", "add_color_dist")}
    return Foreign(anchors, decoder, settings | {"model.primitive": "anchors"} | flags, steps, about)  # fmt: skip


def read_cfg_args(path: Path) -> dict[str, Any]:
    """The settings in a ``cfg_args`` of 3DGS codebases that exist here, by dotted name; none if there is no such file.

    The text ``Namespace(name=value, ...)`` is parsed as literals, never evaluated; other values are passed over.
    """
    try:
        call = ast.parse(path.read_text(encoding="utf-8").strip(), mode="eval").body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values = {}
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        if isinstance(keyword.value, ast.Constant):
            values[keyword.arg] = keyword.value.value
    settings: dict[str, Any] = {}
    if isinstance(values.get("white_background"), bool):
        settings["scene.white_background"] = values["white_background"]
    if isinstance(values.get("images"), str) and values["images"]:
        settings["scene.images"] = values["images"]
    resolution, voxel = values.get("resolution"), values.get("voxel_size")
    if isinstance(resolution, int | float) and (resolution == -1 or resolution > 0):
        settings["scene.resolution"] = resolution
    if isinstance(voxel, int | float) and voxel >= 0:
        settings["model.voxel_size"] = voxel
    folder = values.get("source_path")
    if isinstance(folder, str) and folder and Path(folder).is_dir():
        settings["scene.path"] = folder
    return settings


def _file(path: Path) -> Foreign:
    if not is_splat_file(path):
        if path.suffix in _CHECKPOINTS:
            raise UserError(
                f"{path}: a Python checkpoint, which can run code when it is read, expected a model as PLY; open it "
                "with the program that wrote it and save its .ply (save_ply in 3DGS codebases)"
            )
        raise UserError(
            f"{path}: neither a folder nor one of {', '.join(sorted(FORMATS))}, expected the model of another program; "
            "name its output folder or its file of Gaussians"
        )
    return _gaussians(read_splats(path), {}, 1, f"Gaussians of {path}")


def _gaussians(splats: Splats, settings: dict[str, Any], steps: int, about: str) -> Foreign:
    _check_finite(splats, about)
    settings = settings | NEEDS_ANCHORS | {"model.primitive": "gaussians", "gaussians.sh_degree": splats.sh_degree}
    return Foreign(splats, None, settings, steps, about)


def _anchors(ply: Path) -> Anchors:
    """The anchors of a PLY without further properties, which would change what they mean."""
    names = number_names(read_vertices(ply, "anchors"))
    other = sorted(name for name in names if name not in _KNOWN and not name.startswith(_NUMBERED))
    if other:
        raise UserError(
            f"{ply}: the property '{other[0]}', expected the anchors of Scaffold-GS or Momentum-GS; models with levels "
            "(Octree-GS) or other additions cannot be imported: bake the model to a 3DGS .ply with its own program"
        )
    anchors = load_ply(ply)
    _check_finite(anchors, str(ply))
    return anchors


def _check_finite(model: Anchors | Splats, about: str) -> None:
    if len(model) == 0:
        raise UserError(f"{about}: 0 {model.NOUN}, expected some; check the file")
    for name, rows in model.rows().items():
        if not bool(torch.isfinite(rows.detach()).all()):
            raise UserError(
                f"{about}: {name} holds numbers that are not finite, expected finite ones; remove these {model.NOUN} "
                "with the program that wrote them"
            )
