"""Learning of per-image colour corrections (docs/appearance.md)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from momentum_gs.config.run import coarse_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.window import Window
from momentum_gs.model.appearance import ROW_SHAPES, AppearanceTable, correct, load_appearance, roughness
from momentum_gs.train.corrections.appearance_smooth import Neighbours
from momentum_gs.train.corrections.image_rows import ImageRows, NoRows, first_table
from momentum_gs.train.lr import exponential

# Weight of a bilateral grid's roughness in the loss, as in gsplat's examples.
_SMOOTH = 10.0


class NoAppearance(NoRows):
    """Stands in for a table where nothing is corrected (``appearance.model=none``)."""

    table: AppearanceTable | None = None

    def correct(self, image: Tensor, name: str, window: Window | None = None) -> Tensor:
        """The render, unchanged."""
        return image


class SharedAppearance(ImageRows[AppearanceTable]):
    """The colour corrections of all images; ``NoAppearance`` has the same interface."""

    def __init__(
        self,
        config: Config,
        start: AppearanceTable,
        device: torch.device,
        clock_scale: float,
        neighbours: Neighbours | None = None,
    ) -> None:
        """
        Args:
            clock_scale: Block steps per update of the corrections.
            neighbours: Pairs of images whose corrections ``appearance.smooth`` keeps similar.
        """
        super().__init__(config, start, device, clock_scale)
        self._smooth, self._share = config.appearance.smooth, 1.0
        self._near = {
            self._place[name]: [(self._place[other], closeness) for other, closeness in near]
            for name, near in (neighbours or {}).items()
        }

    def rate(self, config: Config) -> Callable[[float], float]:
        """Block steps done -> learning rate (``appearance.lr``)."""
        return exponential(*config.appearance.lr, config.optim.lr_steps)

    def correct(self, image: Tensor, name: str, window: Window | None = None) -> Tensor:
        """The render [3,H,W], or its window's part, with the correction of the image ``name``; differentiable in
        both."""
        place = self._place[name]
        row = self.row(place).requires_grad_(self._live)
        self._shown, self._share = (place, row), 1.0 if window is None else window.share
        return correct(image, row, window)

    def take_gradient(self, position: int) -> None:
        """Stores the gradient of the last image's correction, with those of its regularizers; ``position``: index of
        its block among the active ones. A part of a view has its share of them, as of the loss."""
        assert self._shown is not None, "an image was shown"
        place, row = self._shown
        if row.dim() == 4:
            (self._share * _SMOOTH * roughness(row)).backward()
        for other, closeness in self._near.get(place, ()):
            # An image that has not been trained on yet has no correction and does not pull.
            weight = self._share * self._smooth * closeness * self._seen[other]
            (weight * (row - self.row(other)).square().mean()).backward()
        super().take_gradient(position)


Appearance = SharedAppearance | NoAppearance
"""Both have the same interface."""
NO_APPEARANCE = NoAppearance()


def make_appearance(
    config: Config,
    names: Sequence[str],
    device: torch.device,
    clock_scale: float,
    fresh: bool,
    neighbours: Neighbours | None = None,
) -> Appearance:
    """The colour corrections for ``appearance.model``; blocks start from the coarse run's corrections if there are any.

    Args:
        names: All training images of the scene.
        clock_scale: Block steps per update of the corrections.
        fresh: True: a new run; False: ``load`` follows.
        neighbours: Pairs of images whose corrections ``appearance.smooth`` keeps similar.

    Raises:
        UserError: if the coarse run has corrections of another kind.
    """
    kind = config.appearance.model
    if kind == "none":
        return NO_APPEARANCE
    start = first_table(config, AppearanceTable, names, ROW_SHAPES[kind], load_appearance, fresh)
    if start.rows.shape[1:] != ROW_SHAPES[kind]:
        raise UserError(
            f"{coarse_folder(config)}: corrections of shape {tuple(start.rows.shape[1:])}, expected "
            f"{ROW_SHAPES[kind]} (appearance.model = {kind}); train the coarse model with the same setting"
        )
    return SharedAppearance(config, start, device, clock_scale, neighbours)
