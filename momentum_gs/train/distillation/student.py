"""A student: it learns from images and from other models, and is pruned to a given number of Gaussians.

Source: Distilled-3DGS (its loss: L_color(image) + lambda_kd L_color(teachers' mean) + L_hist); pruning in the middle
of the run as in Mini-Splatting.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.data.scene import Scene
from momentum_gs.model.splats import Harmonics
from momentum_gs.render.view import background_of
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.splat_block import sh_degree_at
from momentum_gs.train.blocks.views import BlockPlan
from momentum_gs.train.distillation.structure import structure_loss
from momentum_gs.train.distillation.teachers import PseudoLabels, load_teachers
from momentum_gs.train.growth.importance import importance, most_important, sample_by_importance
from momentum_gs.train.losses import KD_TERMS, STRUCTURE, reconstruction


class Student:
    """The teachers' part in a step, and pruning between steps. Every rank has its own instance."""

    def __init__(self, config: Config, scene: Scene, plan: BlockPlan, folder: Path, device: torch.device) -> None:
        """
        Args:
            config: ``distill`` with teachers, or with a number of Gaussians, or both.
            scene: The scene.
            plan: Views and cells of the blocks.
            folder: For the teachers' renders of this process; its content is removed.
            device: Where teachers are rendered.

        Raises:
            UserError: teachers do not fit the student (``load_teachers``), or it would have more Gaussians than the
                first.
        """
        settings = config.distill
        if settings.gaussians is not None and settings.gaussians.endswith("%") and not settings.teachers:
            raise UserError(f"distill: gaussians is {settings.gaussians}, expected a number: there are no teachers")
        self._config, self._plan = config, plan
        teachers = load_teachers(settings.teachers, scene, scene.frame.recorded(config.scene), device)
        learned = background_of(teachers[0].decoder) if teachers else None
        self.background = None if learned is None else learned.requires_grad_(False)
        """The first teacher's learned background, which is behind the student; None without one."""
        wants_labels = bool(teachers) and settings.lambda_kd > 0
        self._labels = PseudoLabels(teachers, folder, int(settings.labels_gb * 2**30)) if wants_labels else None
        wants_places = settings.gaussians is not None or (bool(teachers) and settings.structure > 0)
        self._places: Tensor | None = None
        self._budget: list[int] | None = None
        if wants_places:
            places = teachers[0].positions(scene.train) if teachers else scene.points.xyz
            blocks = places.new_zeros(len(places), dtype=torch.long)
            if plan.cell_of is not None and len(plan) > 1:
                blocks = plan.cell_of(places.double())
            self._places, self._block_of = places, blocks
            self._budget = self._shared_out(len(places), bool(teachers))

    def _shared_out(self, there: int, taught: bool) -> list[int] | None:
        """The number of Gaussians of each block: shares as of the first teacher's, or of the scene's points."""
        count = self._config.distill.count(there)
        if count is None:
            return None
        if taught and count > there:
            raise UserError(
                f"distill: gaussians is {count:,}, expected at most the {there:,} of the first teacher, "
                f"{self._config.distill.teachers[0]}; ask for fewer"
            )
        found = torch.bincount(self._block_of.cpu(), minlength=len(self._plan)).tolist()
        return [max(1, int(count * part / max(there, 1))) for part in found]

    def terms(
        self, block: Block, camera: Camera, image: Float[Tensor, "3 h w"], target: TargetImage, window: Window | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of a view, each times its weight: ``KD_TERMS`` if there are labels, ``STRUCTURE`` where it is due.

        Args:
            block: The block in training.
            camera: The view, at the pose of the scene.
            image: Its render, or the part in the window, without colour correction.
            target: The image that it is compared with besides; mask and weights also hold for the label.
            window: The part of the view that the block trains on; None: all of it.
        """
        settings, terms = self._config.distill, {}
        if self._labels is not None:
            label = self._labels.image(camera)
            label = label if window is None else window.crop(label)
            pseudo = TargetImage(label, target.mask, target.weights, target.share)
            share = 1.0 if target.weights is None else target.share
            found = reconstruction(image, pseudo, self._config.loss)
            terms = {f"kd_{name}": settings.lambda_kd * share * term for name, term in found.items()}
            assert tuple(terms) == KD_TERMS
        if settings.teachers and settings.structure > 0 and (block.step + 1) % settings.structure_every == 0:
            assert self._places is not None
            mine, theirs = block.model.position[self._inside(block)], self._places[self._block_of == block.block]
            if len(mine) and len(theirs):
                loss = structure_loss(mine, theirs.to(mine), settings.grid, settings.counts)
                terms[STRUCTURE] = settings.structure * loss
        return terms

    def prune(self, active: Sequence[Block]) -> None:
        """Called after every step: prunes the blocks for which it is due (``prune_at``, ``keep_at``)."""
        if self._budget is None:
            return
        settings = self._config.distill
        for state in active:
            if state.step == settings.prune_at and settings.pick != "merge":
                weight, inside = self._importance(state), self._inside(state)

                kept = self._pick(weight * inside, self._budget[state.block], state.block)
                # What the merge drops is thinned out like the rest; without it the block's views would have holes.
                beside = round(int((~inside).sum()) * len(kept) / max(int(inside.sum()), 1))
                self._keep(state, torch.cat([kept, self._pick(weight * ~inside, beside, state.block)]).sort().values)
            if state.step == settings.keep_at and settings.keep < 1:
                self._keep(state, most_important(self._importance(state), settings.keep).nonzero()[:, 0])

    def _pick(self, weight: Float[Tensor, "n"], count: int, block: int) -> Int[Tensor, "m"]:
        """Ascending rows of a block, chosen by their weights (``distill.pick``)."""
        if self._config.distill.pick == "most":
            return weight.argsort(descending=True, stable=True)[: min(count, int((weight > 0).sum()))].sort().values

        def draw(level: int, index: Tensor) -> Tensor:
            return keyed_uniform(index, self._config.seed, "importance", block)

        return sample_by_importance(weight, count, draw)

    def _importance(self, state: Block) -> Float[Tensor, "n"]:
        harmonics = Harmonics(sh_degree_at(state.step, self._config))
        return importance(state.model, harmonics, self._plan.train[state.block], state.around)

    def _inside(self, state: Block) -> Bool[Tensor, "n"]:
        """Which rows are inside the block's cell, where there is more than one."""
        position = state.model.position.detach()
        if self._plan.cell_of is None or len(self._plan) == 1:
            return torch.ones(len(position), dtype=torch.bool, device=position.device)
        return self._plan.cell_of(position.double()) == state.block

    @staticmethod
    def _keep(state: Block, rows: Tensor) -> None:
        state.model = state.model.edited(rows, None, state.optimizer)
        state.stats = state.STATS.zeros(state.model)

    def close(self) -> None:
        """Removes the teachers' renders."""
        if self._labels is not None:
            self._labels.close()


def make_student(
    config: Config, scene: Scene, plan: BlockPlan, folder: Path, device: torch.device
) -> Student | None:
    """The run's ``Student``; None without teachers and number of Gaussians. Arguments and errors are its."""
    wanted = config.distill.teachers or config.distill.gaussians is not None
    return Student(config, scene, plan, folder, device) if wanted and config.model.primitive == "gaussians" else None
