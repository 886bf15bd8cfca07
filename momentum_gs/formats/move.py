"""Takes a model from the coordinates of a scene's files to those of a training (``data/frame.py``).

All of it is exact up to rounding: the axes of a frame are a signed permutation of the scene's.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.data.frame import Frame
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import HEADS, GaussianDecoder
from momentum_gs.model.harmonics import rotation_of_harmonics
from momentum_gs.model.splats import Splats


@torch.no_grad()
def splats_to_frame(splats: Splats, frame: Frame) -> Splats:
    """Gaussians in scene coordinates -> the same in training coordinates."""
    if frame.is_identity:
        return splats
    turn = rotation_of_harmonics(splats.sh_degree, frame.rotation)[1:, 1:]
    return Splats(
        position=_points(splats.position, frame),
        sh_dc=splats.sh_dc,
        sh_rest=torch.einsum("ij,njc->nic", turn.to(splats.sh_rest), splats.sh_rest),
        log_scale=splats.log_scale - math.log(frame.unit),
        rotation=splats.rotation @ _left(_quaternion(frame.rotation)).T.to(splats.rotation),
        opacity=splats.opacity,
    ).as_leaves()


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
    quaternion = _quaternion(rotation)
    axes = rotation.abs().argmax(dim=1)  # The scene's axis that becomes each axis.
    stretch = torch.cat([anchors.log_scale[:, :3][:, axes], anchors.log_scale[:, 3:]], dim=1)
    back = quaternion * torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    turn = _left(quaternion) @ _right(back)  # The rotation conjugated, as the scales are permuted, too.
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
    turn = _left(quaternion)
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


def _quaternion(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """The quaternion (w, x, y, z) of a rotation matrix, float64.

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack, J. Guidance 23(6), 2000).
    """
    m = rotation.double()
    skew = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[0, 0], matrix[0, 1:], matrix[1:, 0] = m.trace(), skew, skew
    matrix[1:, 1:] = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    vector: Tensor = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    return vector


def _left(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "4 4"]:
    """The matrix of q -> quaternion * q."""
    w, x, y, z = quaternion.tolist()
    rows = [[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]
    return torch.tensor(rows, dtype=torch.float64)


def _right(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "4 4"]:
    """The matrix of q -> q * quaternion."""
    w, x, y, z = quaternion.tolist()
    rows = [[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]]
    return torch.tensor(rows, dtype=torch.float64)
