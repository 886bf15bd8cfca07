"""Decoders of Scaffold-GS and Momentum-GS, as their code saves them: one TorchScript archive per head, or the state
dicts of all in one file.

Source: save_mlp_checkpoints (modes ``split`` and ``unite``) and GaussianModel.__init__ of both,
scene/gaussian_model.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.formats.torchscript import Module, read_torchscript
from momentum_gs.model.decoder import HEADS, GaussianDecoder

_LAYERS = {
    "opacity": ("Linear", "ReLU", "Linear", "Tanh"),
    "cov": ("Linear", "ReLU", "Linear"),
    "color": ("Linear", "ReLU", "Linear", "Sigmoid"),
    "feature_bank": ("Linear", "ReLU", "Linear", "Softmax"),
}
_NUMBERS = {"opacity": 1, "cov": 7, "color": 3}
"""Head -> numbers that it gives for each offset."""
_UNITED = "checkpoints.pth"
"""Of mode ``unite``. It names layers by their places alone; what is between them is taken to be ``_LAYERS``."""
_BANKS = ("feature_bank_mlp", "mlp_feature_bank")
"""Its name for the feature bank, and that of the first release of Scaffold-GS."""

_Weights = dict[str, dict[str, Tensor]]
"""Head -> weights by the names of a ``Sequential``'s state dict."""


def has_official_decoder(folder: Path) -> bool:
    """Whether the folder holds an archive of a head, or the file of all heads."""
    return (folder / _UNITED).is_file() or _is_split(folder)


def _is_split(folder: Path) -> bool:
    return any((folder / f"{name}_mlp.pt").is_file() for name in HEADS)


def read_official_decoder(
    folder: Path, feature_dim: int, n_offsets: int, appearance: int | None
) -> tuple[GaussianDecoder, int]:
    """The decoder of ``opacity_mlp.pt``, ``cov_mlp.pt`` and ``color_mlp.pt``, or of ``checkpoints.pth`` where there are
    none of these, and the number of its appearance codes.

    An appearance code is one more input of the colour head, the same for all of an image. Here it becomes a part of the
    first layer's bias, which gives the same colours.

    Args:
        folder: ``point_cloud/iteration_<N>``.
        feature_dim: Length of the anchors' features.
        n_offsets: Gaussians per anchor.
        appearance: Number of the appearance code to keep, if there are some; None: their mean.

    Raises:
        UserError: a file is missing, cannot be read without running it, or is no head of such a decoder.
    """
    weights, table = _split(folder) if _is_split(folder) else _united(folder / _UNITED)
    code, codes = _code(folder, table, appearance)
    if code is not None:
        first, bias = weights["color"]["0.weight"], weights["color"]["0.bias"]
        if first.shape[1] <= len(code):
            raise _other(folder / "color_mlp.pt", f"{first.shape[1]} inputs with {len(code)} of an appearance code")
        weights["color"]["0.weight"] = first[:, : -len(code)]
        weights["color"]["0.bias"] = bias + first[:, -len(code) :] @ code
    flags = {
        f"add_{name}_dist": _reads_distance(folder, name, weights[name], feature_dim, n_offsets) for name in HEADS
    }
    decoder = GaussianDecoder(
        feature_dim,
        n_offsets,
        hidden_dim=len(weights["opacity"]["0.weight"]),
        use_feature_bank="feature_bank" in weights,
        **flags,
    )
    state = {f"{head}.{name}": values for head, layers in weights.items() for name, values in layers.items()}
    try:
        decoder.load_state_dict(state)
    except RuntimeError as error:
        raise _other(folder, str(error).splitlines()[-1].strip()) from error
    return decoder, codes


def _other(path: Path, found: str) -> UserError:
    return UserError(
        f"{path}: {found}, expected heads of two linear layers as Scaffold-GS and Momentum-GS save them; other "
        "descendants of Scaffold-GS cannot be imported: bake the model to a 3DGS .ply with its own program"
    )


def _split(folder: Path) -> tuple[_Weights, Tensor | None]:
    """The weights of one archive per head, and the table of appearance codes."""
    weights = {name: _head(folder, name) for name in HEADS}
    if (folder / "feature_bank_mlp.pt").is_file():
        weights["feature_bank"] = _head(folder, "feature_bank")
    return weights, _appearance(folder)


def _united(path: Path) -> tuple[_Weights, Tensor | None]:
    """The same of the file of mode ``unite``, of which nothing but tensors is read."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Of the unpickler, of zipfile and of torch, which have no common base class.
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{path}: not readable without running what it holds ({why}), expected the state dicts of the decoder's "
            "heads; load it with the program that wrote it, and save it with save_mlp_checkpoints(path, mode='split')"
        ) from error
    if not isinstance(found, Mapping) or not {f"{name}_mlp" for name in HEADS} <= found.keys():
        raise _other(path, "no state dicts of " + ", ".join(f"{name}_mlp" for name in HEADS))
    weights = {name: _state(path, f"{name}_mlp", found[f"{name}_mlp"]) for name in HEADS}
    for name in _BANKS:
        if name in found:
            weights["feature_bank"] = _state(path, name, found[name])
    codes = found.get("appearance")
    if not codes:
        return weights, None
    tables = [*codes.values()] if isinstance(codes, Mapping) else []
    return weights, _table(path, tables[0] if len(tables) == 1 else None)


def _state(path: Path, name: str, found: Any) -> dict[str, Tensor]:
    """The state dict of two linear layers at places 0 and 2."""
    wanted = {f"{i}.{part}": dimensions for i in (0, 2) for part, dimensions in (("weight", 2), ("bias", 1))}
    if not isinstance(found, Mapping) or found.keys() != wanted.keys():
        raise _other(path, f"{name} holds {', '.join(map(str, found)) if isinstance(found, Mapping) else 'no layers'}")
    for part, values in found.items():
        if not isinstance(values, Tensor) or values.ndim != wanted[part] or not values.isfinite().all():
            raise _other(path, f"{name} with no usable {part}")
    return {part: values.float() for part, values in found.items()}


def _head(folder: Path, name: str) -> dict[str, Tensor]:
    """The weights of a head by the names of a ``Sequential``'s state dict."""
    path = folder / f"{name}_mlp.pt"
    module = read_torchscript(path)
    layers: list[Module | None] = [module.module(str(i)) for i in range(len(_LAYERS[name]))]
    kinds = tuple(layer.kind if layer else "nothing" for layer in layers)
    if kinds != _LAYERS[name] or module.module(str(len(layers))) is not None:
        raise _other(path, f"layers {', '.join(kinds)}")
    weights: dict[str, Tensor] = {}
    for i in (0, 2):
        layer = layers[i]
        for part, dimensions in (("weight", 2), ("bias", 1)):
            values = layer.tensor(part) if layer else None
            if values is None or values.ndim != dimensions or not values.isfinite().all():
                raise _other(path, f"no usable {part} of layer {i}")
            weights[f"{i}.{part}"] = values
    return weights


def _appearance(folder: Path) -> Tensor | None:
    """The table of appearance codes; None without ``embedding_appearance.pt``."""
    path = folder / "embedding_appearance.pt"
    if not path.is_file():
        return None
    module = read_torchscript(path)
    inner = module.module("embedding") or module
    return _table(path, inner.tensor("weight"))


def _table(path: Path, codes: Any) -> Tensor:
    if not isinstance(codes, Tensor) or codes.ndim != 2 or not codes.numel() or not codes.isfinite().all():
        raise _other(path, "no table of appearance codes")
    return codes.float()


def _code(folder: Path, codes: Tensor | None, chosen: int | None) -> tuple[Tensor | None, int]:
    """The appearance code to keep, and how many there are; None and 0 without any."""
    if codes is None:
        return None, 0
    if chosen is not None and not 0 <= chosen < len(codes):
        raise UserError(
            f"{folder}: {len(codes)} appearance codes, expected --appearance from 0 to {len(codes) - 1}; leave it out "
            "for their mean"
        )
    return (codes.mean(dim=0) if chosen is None else codes[chosen]), len(codes)


def _reads_distance(folder: Path, name: str, weights: dict[str, Tensor], feature_dim: int, n_offsets: int) -> bool:
    n_in, n_out = weights["0.weight"].shape[1], len(weights["2.weight"])
    if n_in - feature_dim - 3 not in (0, 1) or n_out != _NUMBERS[name] * n_offsets:
        raise _other(
            folder / f"{name}_mlp.pt",
            f"{n_in} inputs and {n_out} outputs for features of {feature_dim} and {n_offsets} offsets",
        )
    return n_in - feature_dim - 3 == 1
