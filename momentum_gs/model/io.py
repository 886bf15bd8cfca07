"""Reading and writing of models. Anchors have the layout of Scaffold-GS: a PLY, and decoder heads as TorchScript.

Next to the heads is ``decoder.safetensors``, from which the decoder is loaded: the weights, with the architecture in
the metadata. Per-block decoders are in ``decoder_block<i>/``, and each vertex of the merged PLY holds its block.
Explicit Gaussians are a PLY (``splat_io.py``), and ``background.safetensors`` if they have a learned background. All
files are written atomically.
Source: save_ply, load_ply_sparse_gaussian and save_mlp_checkpoints of Scaffold-GS, scene/gaussian_model.py.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.background import Background
from momentum_gs.model.decoder import HEADS, GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder, DecoderBank
from momentum_gs.model.ply import chunks, columns, number_names, read_vertices, write_vertices
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import Harmonics, Model, Splats

DECODER_FILE = "decoder.safetensors"
BACKGROUND_FILE = "background.safetensors"
"""Beside explicit Gaussians that have a learned background."""
BLOCK_PROPERTY = "block"
"""Property of a vertex, int32: the block whose decoder decodes the anchor."""


_BLOCK = "point_cloud_block"
_MAX_HEADER = 1 << 16


def model_folder(out: Path, iteration: int = -1) -> Path:
    """OUT/point_cloud/iteration_<N>, for -1 the one with the highest N. Raises UserError if there is none."""
    folders = {
        int(path.name.removeprefix("iteration_")): path
        for path in (out / "point_cloud").glob("iteration_*")
        if path.name.removeprefix("iteration_").isdecimal()
    }
    if not folders:
        raise UserError(f"{out}: no trained model (point_cloud/iteration_<N>); run 'momentum-gs train' first")
    chosen = max(folders) if iteration == -1 else iteration
    if chosen not in folders:
        raise UserError(f"{out}: no iteration {iteration}, found {sorted(folders)}; leave out --iteration for the last")
    return folders[chosen]


def model_file(folder: Path, block: int | None = None) -> Path:
    """The PLY of the merged or coarse model in ``point_cloud/iteration_<N>``, or that of one block before the merge.

    Raises:
        UserError: there is no such file.
    """
    if block is None:
        ply = folder / "point_cloud.ply"
        if not ply.exists():
            raise UserError(f"{ply}: missing, the blocks are not merged yet; run 'momentum-gs merge' first")
        return ply
    ply = folder / f"{_BLOCK}{block}.ply"
    if not ply.exists():
        found = len(list(folder.glob(f"{_BLOCK}*.ply")))
        raise UserError(f"{ply}: missing, found {found} blocks; expected the blocks that training wrote; train again")
    return ply


def save_model(path: Path, model: Model) -> None:
    """Write a model as a PLY, in the layout of Scaffold-GS for anchors, of 3DGS for explicit Gaussians."""
    if isinstance(model, Splats):
        save_splats(path, model)
    else:
        save_ply(path, model)


def save_ply(path: str | Path, anchors: Anchors) -> None:
    """Write anchors as float32, one vertex per anchor: position, zero normals, offsets (all x, all y, all z), feature,
    opacity logit, log scales, rotation."""
    names = _property_names(anchors.n_offsets, anchors.feature_dim)
    write_vertices(Path(path), names, (_table(anchors, part) for part in chunks(len(anchors))), len(anchors))


def load_ply(path: str | Path) -> Anchors:
    """Read a PLY of ``save_ply`` or Scaffold-GS, as leaves on the CPU.

    Raises:
        UserError: the file is missing, damaged, or its vertices are not anchors.
    """
    path = Path(path)
    vertices = read_vertices(path, "anchors")

    found = number_names(vertices)
    n_offset_numbers, feature_dim = (sum(name.startswith(p) for name in found) for p in ("f_offset_", "f_anchor_feat_"))
    n_offsets = max(n_offset_numbers // 3, 1)
    names = [name for name in _property_names(n_offsets, max(feature_dim, 1)) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if name not in found]
    if missing or n_offset_numbers != 3 * n_offsets:
        wrong = f"no property '{missing[0]}'" if missing else f"{n_offset_numbers} offset numbers, not a multiple of 3"
        raise UserError(f"{path}: {wrong}, so its vertices are not anchors; give a PLY of a Scaffold-GS style model")

    table = columns(vertices, names)
    position, offset, feature, opacity, log_scale, rotation = (
        part.contiguous() for part in table.split((3, 3 * n_offsets, feature_dim, 1, 6, 4), dim=1)
    )
    offset = offset.unflatten(1, (3, n_offsets)).transpose(1, 2).contiguous()
    return Anchors(position, offset, feature, log_scale, rotation, opacity).as_leaves()


def block_decoder_folder(folder: Path, block: int) -> Path:
    """Folder of a block's decoder in ``folder``, which is ``point_cloud/iteration_<N>``."""
    return folder / f"decoder_block{block}"


def load_model(ply: Path) -> tuple[Model, Decoder | Harmonics]:
    """The anchors with their decoder, or the explicit Gaussians with their harmonics, of a model's PLY, on the CPU.

    ``ply`` is in ``point_cloud/iteration_<N>``, next to the decoder's files.

    Raises:
        UserError: as ``load_splats``, ``load_ply`` and ``load_decoder``.
    """
    if _holds_splats(ply):
        splats = load_splats(ply)
        return splats, Harmonics(splats.sh_degree, load_background(ply.parent))
    anchors = load_ply(ply)
    own = block_decoder_folder(ply.parent, int(ply.stem.removeprefix(_BLOCK))) if ply.stem.startswith(_BLOCK) else None
    if own is not None and own.is_dir():
        return anchors, load_decoder(own)
    vertices = PlyData.read(str(ply), mmap="r")["vertex"]
    if BLOCK_PROPERTY not in vertices.data.dtype.names:
        return anchors, load_decoder(ply.parent)
    block = torch.from_numpy(np.array(vertices[BLOCK_PROPERTY], dtype=np.int64))
    if len(block) and int(block.min()) < 0:
        raise UserError(f"{ply}: block {int(block.min())}, expected 0 or more; merge again")
    n = int(block.max()) + 1 if len(block) else 1
    decoders = [load_decoder(block_decoder_folder(ply.parent, b)) for b in range(n)]
    return anchors, DecoderBank(decoders, block)


def save_background(folder: Path, background: Background) -> None:
    """Write ``background.safetensors`` into an existing model folder of explicit Gaussians."""
    with replacing(folder / BACKGROUND_FILE) as temporary:
        temporary.write_bytes(save({"sh": background.sh.detach().cpu().contiguous()}))


def load_background(folder: Path) -> Background | None:
    """The learned background of explicit Gaussians, on the CPU; None without a file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / BACKGROUND_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            sh = file.get_tensor("sh")
        background = Background(math.isqrt(len(sh)) - 1)
        background.load_state_dict({"sh": sh})
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{path}: not a learned background ({first_line}); train again") from error
    return background


def _holds_splats(ply: Path) -> bool:
    """Decided by the header; a file that is no PLY at all is an error in ``load_ply``."""
    if not ply.is_file():
        return False
    with ply.open("rb") as file:
        return b" f_dc_0" in file.read(_MAX_HEADER).partition(b"end_header")[0]


def _table(anchors: Anchors, part: slice) -> Float[Tensor, "n p"]:
    """The rows of a part of the file."""
    position = anchors.position[part]
    return torch.cat(
        [
            position,
            torch.zeros_like(position),
            anchors.offset[part].transpose(1, 2).flatten(1),
            anchors.feature[part],
            anchors.opacity[part],
            anchors.log_scale[part],
            anchors.rotation[part],
        ],
        dim=1,
    )


def _property_names(n_offsets: int, feature_dim: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_offset_{i}" for i in range(3 * n_offsets)),
        *(f"f_anchor_feat_{i}" for i in range(feature_dim)),
        "opacity",
        *(f"scale_{i}" for i in range(6)),
        *(f"rot_{i}" for i in range(4)),
    ]


def save_decoder(folder: str | Path, decoder: GaussianDecoder) -> None:
    """Write ``decoder.safetensors`` and one ``<head>_mlp.pt`` per head into an existing folder.

    The input of a head is [M, F + 3 (+ 1 with its distance flag)]: feature, direction, distance.
    """
    folder = Path(folder)
    tensors = save_decoder_weights(folder, decoder)
    plain = _build(decoder.architecture, tensors)
    heads = {name: getattr(plain, name) for name in HEADS}
    if plain.feature_bank is not None:
        heads["feature_bank"] = plain.feature_bank
    for name, head in heads.items():
        with replacing(folder / f"{name}_mlp.pt") as temporary:
            _script(head).save(str(temporary))


def save_decoder_weights(folder: Path, decoder: GaussianDecoder) -> dict[str, Tensor]:
    """Write ``decoder.safetensors`` alone, which is all that ``load_decoder`` reads; returns the weights."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in decoder.state_dict().items()}
    with replacing(folder / DECODER_FILE) as temporary:
        temporary.write_bytes(save(tensors, {"architecture": json.dumps(decoder.architecture)}))
    return tensors


def load_decoder(folder: str | Path) -> GaussianDecoder:
    """Read ``decoder.safetensors`` of a folder, bit for bit, on the CPU.

    Raises:
        UserError: the file is missing or damaged, or it holds no decoder.
    """
    path = Path(folder) / DECODER_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the decoder of a trained model; train first")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        return _build(json.loads(metadata["architecture"]), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{path}: not the decoder of a trained model ({first_line}); write it again") from error


def _build(architecture: dict[str, bool | int], tensors: dict[str, Tensor]) -> GaussianDecoder:
    """A decoder with these weights; does not advance the global random number generator."""
    with torch.device("meta"):
        decoder = GaussianDecoder(**architecture)  # type: ignore[arg-type]
    decoder.load_state_dict(tensors, assign=True)
    return decoder.requires_grad_(True)


def _script(head: nn.Sequential) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript is deprecated, but it is what the viewers of 3DGS codebases load.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        return torch.jit.script(head.eval())
