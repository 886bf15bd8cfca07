"""What the blocks of a run start from."""

from dataclasses import replace

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.data.fill_points import fill_points
from momentum_gs.data.scene import Scene
from momentum_gs.model.init import init_splats
from momentum_gs.train.blocks.anchor_block import init_block
from momentum_gs.train.blocks.packed import Block
from momentum_gs.train.blocks.splat_block import init_splat_block
from momentum_gs.train.blocks.views import BlockPlan, initial_points
from momentum_gs.train.initialization import load_initialization, seen_by


class FirstBlocks:
    """Block -> its state at step 0: from the coarse model where ``gaussians.prior`` says so, else from points."""

    def __init__(self, scene: Scene, plan: BlockPlan, config: Config, device: torch.device) -> None:
        """Raises UserError where the coarse model is missing or does not fit."""
        if config.model.fill_points:
            scene = replace(scene, points=fill_points(scene.points, scene.train, config.model.fill_points, config.seed))
        self._scene, self._plan, self._config, self._device = scene, plan, config, device
        self._initialization = load_initialization(config) if config.starts_from_coarse else None

    def __call__(self, block: int) -> Block:
        """Raises UserError for a block whose views see nothing to start from."""
        config, device, cameras = self._config, self._device, self._plan.train[block]
        if self._initialization is not None:
            return init_splat_block(block, seen_by(self._initialization, block, cameras), cameras, config, device)
        points = initial_points(self._scene, cameras, config)
        if not any(bool(in_view(points.xyz, camera).any()) for camera in cameras):
            raise UserError(
                f"block {block}: none of the {len(self._scene.points)} points is inside one of its "
                f"{len(cameras)} views, expected points that they see; check the poses in sparse/0"
            )
        if config.model.primitive == "gaussians":
            return init_splat_block(block, init_splats(points, config.gaussians.sh_degree), cameras, config, device)
        return init_block(block, points, cameras, config, device)
