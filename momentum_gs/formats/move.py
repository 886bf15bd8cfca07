"""Takes a model from the coordinates of a scene's files to those of a training (``data/frame.py``).

All of it is exact up to rounding: the axes of a frame are a signed permutation of the scene's.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.geometry import matrix_to_quat
from momentum_gs.data.frame import Frame
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import HEADS, GaussianDecoder
from momentum_gs.model.similarity import times_left, times_right, transformed
from momentum_gs.model.splats import Splats


@torch.no_grad()
def splats_to_frame(splats: Splats, frame: Frame) -> Splats:
    """Gaussians in scene coordinates -> the same in training coordinates."""
    if frame.is_identity:
        return splats
    return transformed(splats, _points(splats.position, frame), frame.rotation, 1 / frame.unit)


@torch.no_grad()
def anchors_to_frame(
    anchors: Anchors, decoder: GaussianDecoder, frame: Frame
) -> tuple[Anchors, GaussianDecoder]:
    """Anchors with their decoder in scene coordinates -> the same in training coordinates.

    The decoder sees directions and distances, and gives rotations: these weights are turned and scaled, so that it
    gives the same Gaussians, turned and scaled. It has no learned background.
    """
    if frame.is_identity:
        return anchors, decoder
    rotation = frame.rotation
    quaternion = matrix_to_quat(rotation)
    axes = rotation.abs().argmax(dim=1)  # The scene's axis that becomes each axis.
    stretch = torch.cat([anchors.log_scale[:, :3][:, axes], anchors.log_scale[:, 3:]], dim=1)
    back = quaternion * torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    turn = times_left(quaternion) @ times_right(back)  # The rotation conjugated, as the scales are permuted, too.
    moved = Anchors(
        position=_points(anchors.position, frame),
        offset=anchors.offset @ rotation.T.to(anchors.offset),
        feature=anchors.feature,
        log_scale=stretch - math.log(frame.unit),
        rotation=anchors.rotation @ turn.T.to(anchors.rotation),
        opacity=anchors.opacity,
    ).as_leaves()
    return moved, _moved_decoder(decoder, rotation, quaternion, frame.unit)


def _moved_decoder(
    decoder: GaussianDecoder, rotation: Float[Tensor, "3 3"], quaternion: Float[Tensor, "4"], unit: float
) -> GaussianDecoder:
    moved = GaussianDecoder(**decoder.architecture)
    moved.load_state_dict(decoder.state_dict())
    feature = decoder.architecture["feature_dim"]
    layers = dict(moved.named_parameters())
    for name in HEADS:
        _turn_inputs(layers[f"{name}.0.weight"], feature, rotation, unit)
    if moved.feature_bank is not None:
        _turn_inputs(layers["feature_bank.0.weight"], 0, rotation, unit)
    turn = times_left(quaternion)
    for name in ("cov.2.weight", "cov.2.bias"):  # Of every offset, three scales and the quaternion.
        rows = layers[name].view(decoder.n_offsets, 7, -1)
        rows[:, 3:] = torch.einsum("ij,kjh->kih", turn.to(rows), rows[:, 3:])
    return moved


def _turn_inputs(weight: Float[Tensor, "h i"], start: int, rotation: Float[Tensor, "3 3"], unit: float) -> None:
    """Turns the weights of the direction, which begin at column ``start``, and scales that of a distance after it."""
    weight[:, start : start + 3] = weight[:, start : start + 3] @ rotation.T.to(weight)
    weight[:, start + 3 :] *= unit


def _points(xyz: Float[Tensor, "n 3"], frame: Frame) -> Float[Tensor, "n 3"]:
    offset = torch.tensor(frame.offset, dtype=torch.float64)
    return ((xyz.double() - offset) @ frame.rotation.T / frame.unit).to(xyz)
