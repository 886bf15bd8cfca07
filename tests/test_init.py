"""Initial anchors against values of the official code, and facts about voxelization."""

from typing import Any

import pytest
import torch
from anchor_scene import parity
from tiny_scene import nadir_camera
from torch import Tensor

from momentum_gs.config.schema import Config, ModelConfig, SurfaceConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import PointCloud
from momentum_gs.model.expand import decode
from momentum_gs.model.init import FLAT, init_anchors, median_spacing, voxelize
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.decoders.learner import DecoderLearner, fresh_decoder

CPU = torch.device("cpu")
CAMERAS = [nadir_camera("a", 0.0, 0.0), nadir_camera("b", 1.0, 0.0)]


def cloud(xyz: Tensor) -> PointCloud:
    return PointCloud(xyz.double(), torch.zeros(len(xyz), 3, dtype=torch.uint8))


def test_parity_of_voxels() -> None:
    figures = parity("init")
    # Rounding and one product in float64 on both sides: the same bits.
    assert torch.equal(voxelize(figures["points"], float(figures["voxel_size"])), figures["voxels"])


def test_parity_of_initial_scales() -> None:
    figures = parity("init")
    anchors, voxel_size = init_anchors(cloud(figures["points"]), ModelConfig(voxel_size=float(figures["voxel_size"])))
    assert voxel_size == figures["voxel_size"]
    assert torch.equal(anchors.position, figures["voxels"].float())
    # The squared distances are float32 sums of three squares, which the two kernels add in different orders.
    expected = figures["mean_dist2"].clamp_min(1e-7).sqrt().log().unsqueeze(1).expand(-1, 6)
    torch.testing.assert_close(anchors.log_scale.detach(), expected, rtol=0, atol=2e-6)


def test_voxelize_keeps_what_is_voxelized() -> None:
    points = torch.rand(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20 - 10
    voxels = voxelize(points, 0.3)
    assert torch.equal(voxelize(voxels, 0.3), voxels)
    assert torch.equal(voxelize(points.flip(0), 0.3), voxels)
    # Every point is within half an edge of a voxel; 1e-9 for the rounding of the product.
    assert ((points[:, None] - voxels[None]).abs().amax(2).amin(1) <= 0.15 + 1e-9).all()


def test_features_and_offsets_start_at_zero() -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    anchors, _ = init_anchors(cloud(points), ModelConfig(voxel_size=1e-3, feature_dim=16, n_offsets=5))
    assert anchors.feature.shape == (50, 16) and not anchors.feature.any()
    assert anchors.offset.shape == (50, 5, 3) and not anchors.offset.any()
    assert anchors.feature.requires_grad and not anchors.position.requires_grad


def test_automatic_voxel_size_is_a_length() -> None:
    points = torch.rand(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = init_anchors(cloud(points), ModelConfig(voxel_size=0.0))[1]
    large = init_anchors(cloud(points * 8), ModelConfig(voxel_size=0.0))[1]
    # A power of two scales float32 distances exactly.
    assert large == pytest.approx(8 * small, rel=1e-6)
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 3).double()
    # In a grid every point has three neighbours at distance 1.
    assert median_spacing(grid) == 1.0


def test_anchors_at_one_position_have_finite_scales() -> None:
    far = torch.tensor([[1e6, 0, 0], [1e6 + 1e-3, 0, 0]], dtype=torch.float64)
    # Two voxels in float64 that are one position in float32.
    anchors, _ = init_anchors(cloud(far), ModelConfig(voxel_size=1e-4))
    assert len(anchors) == 2 and anchors.log_scale.isfinite().all()


@pytest.mark.parametrize("xyz", [torch.zeros(0, 3), torch.tensor([[0.0, float("nan"), 0.0], [0, 0, 0]])])
def test_unusable_points_are_refused(xyz: Tensor) -> None:
    with pytest.raises(UserError, match="points:"):
        init_anchors(cloud(xyz), ModelConfig())


def test_coinciding_points_give_no_automatic_voxel() -> None:
    with pytest.raises(UserError, match="voxel_size"):
        init_anchors(cloud(torch.zeros(10, 3)), ModelConfig(voxel_size=0.0))


@pytest.mark.parametrize("how", [{"surface": "planar"}, {"flat_start": True}])
def test_anchors_start_flat_along_a_tilted_plane(how: dict[str, Any]) -> None:
    """Decoded Gaussians are about ``FLAT`` times as thick along the normal, which the decoder reads in the feature."""
    normal = torch.nn.functional.normalize(torch.tensor([0.5, -0.7, 0.4], dtype=torch.float64), dim=0)
    across = torch.linalg.svd(normal[None]).Vh[1:]
    flat = torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ across
    config = Config(model=ModelConfig(voxel_size=0.04, **how))
    block = AnchorBlock.from_points(0, cloud(flat), CAMERAS, config, CPU)
    decoder = DecoderLearner(config, CPU).module
    for camera in torch.tensor([[0.0, 0, 9], [-3, 4, -1]]):
        seen = decode(block.model, decoder, camera).gaussians
        assert len(seen.means) > len(block.model)
        scales, axis = seen.scales.detach().sort(dim=1)
        turned = quat_to_matrix(seen.quats.detach()).gather(2, axis[:, None, :1].expand(-1, 3, 1))[:, :, 0]
        assert float((turned @ normal.float()).abs().min()) > 0.99
        ratio = scales[:, 0] / scales[:, 1]
        assert 0.5 * FLAT < float(ratio.median()) < 2 * FLAT and float(ratio.max()) < 4 * FLAT


@pytest.mark.parametrize(
    "config",
    [
        Config(model=ModelConfig(voxel_size=0.1)),
        Config(model=ModelConfig(surface="planar", voxel_size=0.1), surface=SurfaceConfig(flatten=0.0)),
        Config(model=ModelConfig(surface="planar", voxel_size=0.1, use_feature_bank=True)),
        Config(model=ModelConfig(flat_start=True, voxel_size=0.1, use_feature_bank=True)),
        Config(model=ModelConfig(surface="planar", voxel_size=0.1, feature_dim=4)),
    ],
)
def test_other_anchors_start_as_ever(config: Config) -> None:
    points = cloud(torch.rand(100, 3, generator=torch.Generator().manual_seed(0)))
    block = AnchorBlock.from_points(0, points, CAMERAS, config, CPU)
    assert not block.model.feature.any()
    torch.manual_seed(config.seed)
    drawn = fresh_decoder(config.model).state_dict()
    started = DecoderLearner(config, CPU).module.state_dict()
    assert all(torch.equal(started[name], value) for name, value in drawn.items())
