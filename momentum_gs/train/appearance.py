"""The per-image corrections in training: one table for all blocks and ranks, and its Adam.

Every rank holds the same table and makes the same update, as for the shared decoder: the active blocks' gradients
travel in one buffer with a row for each of them. A step shows few images, so Adam moves the rows of these alone: a row
has a step count of its own, and its moments rest while it is not shown.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.core.errors import UserError
from momentum_gs.model.appearance import ROW_SHAPES, AppearanceTable, correct, load_appearance, pin, roughness
from momentum_gs.model.io import model_folder
from momentum_gs.train.lr import exponential
from momentum_gs.train.prior import coarse_folder

# Adam's usual ones; torch has them as defaults, too.
_BETAS = (0.9, 0.999)
# Weight of a bilateral grid's roughness in the loss, as in gsplat's examples.
_SMOOTH = 10.0


class NoAppearance:
    """In the place of a table (``appearance.model=none``): nothing to correct, to learn, to send or to save."""

    table: AppearanceTable | None = None
    gradients: tuple[Tensor, ...] = ()

    def begin_step(self, live: bool, n_active: int) -> None:
        """Nothing to prepare."""

    def correct(self, image: Tensor, name: str) -> Tensor:
        """The render itself."""
        return image

    def take_gradient(self, position: int) -> None:
        """Nothing to take."""

    def finish_step(self) -> None:
        """Nothing to move."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def metadata(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def load(self, path: Path) -> None:
        """Nothing."""


class SharedAppearance:
    """The table, its moments and the gradients of a step. The face of ``NoAppearance``."""

    def __init__(self, config: Config, start: AppearanceTable, device: torch.device, clock_scale: float) -> None:
        """``clock_scale``: block steps that pass per update of what all blocks share."""
        self.table = AppearanceTable(start.names, start.rows.to(device), start.shown.to(device))
        self._moments = torch.zeros(2, *self.table.rows.shape, device=device)
        self._steps = torch.zeros(len(start.names), dtype=torch.int64, device=device)
        self._updates = 0
        self._place = {name: i for i, name in enumerate(start.names)}
        self._rate = exponential(*config.appearance.lr, config.optim.lr_steps)
        self._eps, self._clock_scale = config.optim.eps, clock_scale
        self._live = False
        self._shown: tuple[int, Tensor] | None = None
        self.gradients: tuple[Tensor, ...] = ()
        """What ``finish_step`` wants summed over the ranks before it is called."""

    def begin_step(self, live: bool, n_active: int) -> None:
        """
        Args:
            live: False: the corrections are fixed, as the decoder is.
            n_active: k, active blocks of all ranks.
        """
        self._live = live
        # The image's number comes first: whole numbers up to 2^24 are exact in float32.
        size = 1 + self.table.rows[0].numel()
        self.gradients = (self.table.rows.new_zeros(n_active, size),) if live else ()

    def correct(self, image: Tensor, name: str) -> Tensor:
        """The render [3,H,W] as the image of that name has it; the gradient reaches both."""
        place = self._place[name]
        row = self.table.rows[place].clone().requires_grad_(self._live)
        self._shown = place, row
        return correct(image, row)

    def take_gradient(self, position: int) -> None:
        """Sets the gradient of the last image shown aside; ``position``: of its block among the active ones."""
        assert self._shown is not None, "an image was corrected"
        place, row = self._shown
        if row.dim() == 4:
            (_SMOOTH * roughness(row)).backward()
        assert row.grad is not None, "the loss is one of the corrected image"
        self.gradients[0][position, 0] = place
        self.gradients[0][position, 1:] = row.grad.flatten()

    @torch.no_grad()
    def finish_step(self) -> None:
        """Moves the images shown along the sum of their blocks' gradients, and all so that their mean stays put.

        A product with zeros and ones sums in one order on every device; adding by index does not on GPUs.
        """
        (buffer,) = self.gradients
        places, block_place = buffer[:, 0].long().unique(return_inverse=True)
        gradient = F.one_hot(block_place, len(places)).to(buffer).T @ buffer[:, 1:]
        self._move(places, gradient.view(-1, *self.table.rows.shape[1:]))
        self.table.shown[places] = True
        self.table.rows.copy_(pin(self.table.rows, self.table.shown))
        self._updates += 1

    def _move(self, places: Tensor, gradient: Tensor) -> None:
        """One step of Adam (Kingma and Ba 2015) for these rows."""
        self._steps[places] += 1
        steps = self._steps[places].to(gradient).view(-1, *[1] * (gradient.dim() - 1))
        mean, square = self._moments[:, places]
        mean, square = mean.lerp(gradient, 1 - _BETAS[0]), square.lerp(gradient.square(), 1 - _BETAS[1])
        self._moments[0, places], self._moments[1, places] = mean, square
        usual = (square / (1 - _BETAS[1] ** steps)).sqrt() + self._eps
        rate = self._rate(self._updates * self._clock_scale)
        self.table.rows[places] -= rate * mean / (1 - _BETAS[0] ** steps) / usual

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs beside ``metadata``, on the host."""
        tensors = {"rows": self.table.rows, "shown": self.table.shown, "moments": self._moments, "steps": self._steps}
        return {k: to_host(v) for k, v in tensors.items()} | {"updates": torch.tensor([self._updates])}

    def metadata(self) -> dict[str, str]:
        """The images' names, for the file's header."""
        return {"names": json.dumps(self.table.names)}

    def load(self, path: Path) -> None:
        """Reads what ``to_tensors`` and ``metadata`` gave, bit for bit.

        Raises:
            UserError: it is of other images.
        """
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            if names != self.table.names:
                strange = sorted(set(names) ^ set(self.table.names))
                raise UserError(
                    f"{path}: corrections of {len(names)} images, the scene trains on {len(self.table.names)}, and "
                    f"{len(strange)} are in one alone (first: {strange[0]}); resume with the images of the run, or "
                    "train anew without --resume"
                )
            for name, tensor in (("rows", self.table.rows), ("shown", self.table.shown), ("moments", self._moments),
                                 ("steps", self._steps)):  # fmt: skip
                tensor.copy_(file.get_tensor(name))
            self._updates = int(file.get_tensor("updates"))


Appearance = SharedAppearance | NoAppearance
"""Of one face."""
NO_APPEARANCE = NoAppearance()


def make_appearance(
    config: Config, names: Sequence[str], device: torch.device, clock_scale: float, fresh: bool
) -> Appearance:
    """As ``appearance.model`` says; blocks start from the coarse run's corrections where it has some.

    Args:
        names: All training images of the scene.
        clock_scale: Block steps an update.
        fresh: The run begins; False: ``load`` follows.

    Raises:
        UserError: the coarse run has corrections of another kind.
    """
    kind = config.appearance.model
    if kind == "none":
        return NO_APPEARANCE
    names = tuple(sorted(names))
    shape = (len(names), *ROW_SHAPES[kind])
    start = AppearanceTable(names, torch.zeros(shape), torch.zeros(len(names), dtype=torch.bool))
    coarse = _coarse_table(config) if fresh and config.stage == "blocks" else None
    if coarse is not None:
        start = coarse.of(names)
        if start.rows.shape != shape:
            raise UserError(
                f"{coarse_folder(config)}: corrections of shape {tuple(start.rows.shape[1:])}, expected "
                f"{ROW_SHAPES[kind]} (appearance.model = {kind}); train the coarse model with the same setting"
            )
    return SharedAppearance(config, start, device, clock_scale)


def _coarse_table(config: Config) -> AppearanceTable | None:
    """None without a coarse model, which some ways to partition do not need, or where it was trained without."""
    try:
        folder = model_folder(coarse_folder(config))
    except UserError:
        return None
    return load_appearance(folder)
