"""Initialization of the blocks of a run."""

from dataclasses import replace

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.data.fill_points import fill_points
from momentum_gs.data.scene import Scene
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.init import median_spacing
from momentum_gs.model.splats import Model, Splats
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.packed import block_kind
from momentum_gs.train.blocks.splat_block import SplatBlock
from momentum_gs.train.blocks.views import BlockPlan, initial_points
from momentum_gs.train.initialization import Initialization, load_initialization, seen_by


class FirstBlocks:
    """Block -> its state at step 0: from a trained model, otherwise from points."""

    def __init__(
        self,
        scene: Scene,
        plan: BlockPlan,
        config: Config,
        device: torch.device,
        initialization: Initialization | None = None,
    ) -> None:
        """
        Args:
            initialization: What blocks start from; None: from the coarse model (``Config.starts_from_coarse``) or from
                points.

        Raises:
            UserError: the coarse model is missing or does not fit (``load_initialization``).
        """
        if initialization is None and config.starts_from_coarse:
            initialization = load_initialization(config)
        if config.model.fill_points and (initialization is None or not config.model.voxel_size):
            scene = replace(scene, points=fill_points(scene.points, scene.train, config.model.fill_points, config.seed))
        self._scene, self._plan, self._config, self._device = scene, plan, config, device
        self._initialization = initialization

    @property
    def decoder(self) -> GaussianDecoder | None:
        """What the shared decoder starts from; None: from random weights."""
        return None if self._initialization is None else self._initialization.decoder

    def __call__(self, block: int) -> Block:
        """Raises UserError if there is nothing that the block could start from."""
        config, device, cameras = self._config, self._device, self._plan.train[block]
        if self._initialization is not None:
            model = self._of_coarse(block, self._initialization.model)
            if isinstance(model, Splats):
                return SplatBlock.from_splats(block, model, cameras, config, device)
            voxel = config.model.voxel_size or median_spacing(self._scene.points.xyz)
            state = AnchorBlock.from_anchors(block, model, voxel, cameras, config, device)
            if state.own is not None and self.decoder is not None:
                state.own.module.load_state_dict(self.decoder.state_dict())
            return state
        points = initial_points(self._scene, cameras, config)
        if not any(bool(in_view(points.xyz, camera).any()) for camera in cameras):
            raise UserError(
                f"block {block}: none of the {len(self._scene.points)} points is inside one of its "
                f"{len(cameras)} views, expected points that they see; check the poses in sparse/0"
            )
        return self._own(block_kind(config).from_points(block, points, cameras, config, device))

    def _of_coarse(self, block: int, coarse: Model) -> Model:
        """Those rows of the coarse model that the block's views see or, where it trains windows, those in its cell that
        any view sees: its neighbours are rendered amid what its own views do not show."""
        plan = self._plan
        if plan.windows is None or plan.cell_of is None:
            return seen_by(coarse, block, plan.train[block])
        inside = plan.cell_of(coarse.position.detach().double()) == block
        return seen_by(coarse.subset(inside), block, self._scene.train)

    def _own(self, state: Block) -> Block:
        """The block less what lies outside its cell, where it trains windows."""
        plan = self._plan
        if plan.windows is not None and plan.cell_of is not None:
            own = (plan.cell_of(state.model.position.double()) == state.block).nonzero()[:, 0]
            if not len(own):
                raise UserError(
                    f"block {state.block}: none of its {len(state.model)} initial {state.model.NOUN} is inside its "
                    "cell, expected some with blocks.windows; use fewer blocks and re-run 'momentum-gs partition', or "
                    "set blocks.from_coarse=true"
                )
            state.model = state.model.edited(own, None, state.optimizer)
            state.stats = state.STATS.zeros(state.model)
        return state
