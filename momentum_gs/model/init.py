"""Initialization of anchors or explicit Gaussians from a point cloud.

Source: create_from_pcd and voxelize_sample of Scaffold-GS, create_from_pcd of 3DGS, scene/gaussian_model.py.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from simple_knn._C import distCUDA2
from torch import Tensor, nn

from momentum_gs.config.schema import ModelConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.normals import point_normals
from momentum_gs.core.types import PointCloud
from momentum_gs.core.voxels import cell_centers, cells_of, unique_cells
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.splats import Splats

_MIN_DIST2 = 1e-7
"""Lower bound on the squared spacing that gives an initial scale, so that coinciding points have a finite one [SGS]."""

FLAT = 0.1
"""The scale along the normal where Gaussians start flat, as a share of the others. On the small city of
docs/surfaces.md, depth and held-out PSNR were best at this among 1/2, 1/4.5 and 1/10; the likely cause is that the
first steps do not make another axis the smallest."""
_FLAT_LOGIT = math.log(FLAT / (2 - FLAT))
"""The same for decoded Gaussians: sigmoid(0) = 1/2 of an anchor's scale along the others, FLAT / 2 along the normal."""


def voxelize(points: Float[Tensor, "n 3"], voxel_size: float) -> Float[Tensor, "m 3"]:
    """Centres of the voxels that hold at least one point, in lexicographic order, in the dtype of ``points``.

    Args:
        points: World, training units.
        voxel_size: Edge of a voxel, training units.
    """
    return cell_centers(unique_cells(cells_of(points, voxel_size))[0], voxel_size, points.dtype)


def init_anchors(points: PointCloud, config: ModelConfig, flat: bool = False) -> tuple[Anchors, float]:
    """One anchor in every voxel that holds a point, on the CPU.

    Offsets and features start at zero, all six scales at the root mean squared distance to the three nearest anchors.

    Args:
        points: World, training units.
        flat: The first three numbers of a feature start as the normal of the points around the anchor instead, which
            a decoder after ``start_flat_`` makes its Gaussians' normal (``Config.starts_flat``).

    Returns:
        The anchors as leaves, and the voxel size: ``config.voxel_size``, or, if that is 0, ``median_spacing`` of the
        points. (Scaffold-GS uses the *squared* distance there, which is not a length.)

    Raises:
        UserError: there is no point, a point is not finite, or the median spacing is 0 because most points coincide.
    """
    _check_finite(points)
    voxel_size = config.voxel_size or median_spacing(points.xyz)
    position = voxelize(points.xyz, voxel_size).float()
    log_scale = _log_spacing(position).repeat(1, 6)
    feature = position.new_zeros(len(position), config.feature_dim)
    if flat:
        feature[:, :3] = _normals_of_voxels(points.xyz, voxel_size)
    return Anchors.fresh(position, feature, log_scale, config.n_offsets).as_leaves(), voxel_size


def _normals_of_voxels(points: Float[Tensor, "n 3"], voxel_size: float) -> Float[Tensor, "m 3"]:
    """Normals of the points' means in the voxels of ``voxelize`` (their centres are steps on a slope); z >= 0."""
    row = unique_cells(cells_of(points, voxel_size))[1]
    count = row.bincount()
    normal = point_normals(points.new_zeros(len(count), 3).index_add_(0, row, points) / count[:, None])
    return (normal * torch.where(normal[:, 2:] < 0, -1.0, 1.0)).float()


@torch.no_grad()
def start_flat_(decoder: GaussianDecoder) -> None:
    """Makes a fresh decoder's Gaussians thin, about ``FLAT``, along the normal in the first three numbers of a feature.

    The first six hidden units of the covariance head hold the positive and the negative part of each number, and the
    quaternion is (1 + z, -y, x, 0): half the way from the z axis to the normal (x, y, z), of which it takes the double.
    Everything else stays as it was drawn.
    """
    first, last = decoder.cov[0], decoder.cov[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    first.weight[:6] = 0
    first.bias[:6] = 0
    weight, bias = last.weight.unflatten(0, (decoder.n_offsets, 7)), last.bias.unflatten(0, (decoder.n_offsets, 7))
    bias[:, 2] += _FLAT_LOGIT
    bias[:, 3:] = 0
    bias[:, 3] = 1
    weight[:, 3:] = 0
    for number, output, factor in ((2, 3, 1.0), (1, 4, -1.0), (0, 5, 1.0)):
        for unit, sign in ((2 * number, 1.0), (2 * number + 1, -1.0)):
            first.weight[unit, number] = sign
            weight[:, output, unit] = sign * factor


def init_splats(points: PointCloud, sh_degree: int, flat: bool = False) -> Splats:
    """One Gaussian at every point, on the CPU, with the point's colour.

    Its scale is the root mean squared distance to the three nearest points.

    Args:
        points: World, training units.
        sh_degree: 0 to 3.
        flat: Thin (``FLAT``) along the normal of the points around it; otherwise isotropic. A loss that makes Gaussians
            flat shrinks whatever axis is the smallest, long before the images have turned them, and walls and roofs of
            Gaussians on edge are neither sharp nor where they should be (docs/surfaces.md).

    Raises:
        UserError: there is no point, or a point is not finite.
    """
    _check_finite(points)
    position = points.xyz.float()
    splats = Splats.fresh(position, points.rgb / 255, _log_spacing(position).repeat(1, 3), sh_degree)
    if flat:
        normal = point_normals(points.xyz).float()
        x, y, z = (normal * torch.where(normal[:, :1] < 0, -1.0, 1.0)).unbind(dim=1)
        # Half the way from the x axis to the normal, of which the quaternion takes the double; x is not negative.
        splats.rotation = F.normalize(torch.stack([1 + x, torch.zeros_like(x), -z, y], dim=1))
        splats.log_scale[:, 0] += math.log(FLAT)
    return splats.as_leaves()


def _check_finite(points: PointCloud) -> None:
    finite = int(points.xyz.isfinite().all(dim=1).sum())
    if finite < max(len(points), 1):
        raise UserError(
            f"points: {finite} of {len(points)} are finite, expected all of at least 1; check the sparse model"
        )


def _log_spacing(position: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1"]:
    """Natural log of the root mean squared distance to the three nearest other points."""
    return distCUDA2(position).clamp_min(_MIN_DIST2).sqrt().log().unsqueeze(1)


def median_spacing(points: Float[Tensor, "n 3"]) -> float:
    """Median over the points of the root mean squared distance to the three nearest other points, in their unit.

    Raises:
        UserError: the median is 0 because most points coincide.
    """
    spacing = float(distCUDA2(points.float()).median().sqrt())
    if not spacing > 0:
        raise UserError(
            f"model.voxel_size: 0 asks for the median spacing of the {len(points)} points, which is {spacing}; "
            "give a size above 0"
        )
    return spacing
