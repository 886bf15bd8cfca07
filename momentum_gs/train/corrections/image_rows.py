"""A table with a row for each image in training: one for all blocks and ranks, and its Adam.

Every rank holds the same table and makes the same update, as for the shared decoder: the active blocks' gradients
travel in one buffer with a row for each of them. A step shows few images, so Adam moves the rows of these alone: a row
has a step count of its own, and its moments rest while it is not shown.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from momentum_gs.config.run import coarse_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.core.errors import UserError
from momentum_gs.model.image_table import AnyTable, pin, rows_of
from momentum_gs.model.io import model_folder

# Adam's usual ones; torch has them as defaults, too.
_BETAS = (0.9, 0.999)


class NoRows:
    """In the place of a table that the settings do not ask for: nothing to learn, to send or to save."""

    gradients: tuple[Tensor, ...] = ()

    def begin_step(self, live: bool, n_active: int) -> None:
        """Nothing to prepare."""

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


class ImageRows(Generic[AnyTable]):
    """The table, its moments and the gradients of a step. The face of ``NoRows``."""

    def __init__(
        self, start: AnyTable, rate: Callable[[float], float], eps: float, device: torch.device, clock_scale: float
    ) -> None:
        """
        Args:
            rate: Block steps done -> learning rate.
            eps: Adam's.
            clock_scale: Block steps that pass per update of what all blocks share.
        """
        self.table: AnyTable = replace(start, rows=start.rows.to(device), shown=start.shown.to(device))
        self._moments = torch.zeros(2, *self.table.rows.shape, device=device)
        self._steps = torch.zeros(len(start.names), dtype=torch.int64, device=device)
        self._updates = 0
        self._place = {name: i for i, name in enumerate(start.names)}
        self._rate, self._eps, self._clock_scale = rate, eps, clock_scale
        self._live = False
        self._shown: tuple[int, Tensor] | None = None
        self.gradients: tuple[Tensor, ...] = ()
        """What ``finish_step`` wants summed over the ranks before it is called."""

    def begin_step(self, live: bool, n_active: int) -> None:
        """
        Args:
            live: False: the rows are fixed, as the decoder is.
            n_active: k, active blocks of all ranks.
        """
        self._live = live
        # The image's number comes first: whole numbers up to 2^24 are exact in float32.
        size = 1 + self.table.rows[0].numel()
        self.gradients = (self.table.rows.new_zeros(n_active, size),) if live else ()

    def take_gradient(self, position: int) -> None:
        """Sets the gradient of the last image shown aside; ``position``: of its block among the active ones."""
        assert self._shown is not None, "an image was shown"
        place, row = self._shown
        assert row.grad is not None, "the loss depends on the image's row"
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


def first_table(
    config: Config,
    kind: type[AnyTable],
    names: Sequence[str],
    shape: tuple[int, ...],
    load: Callable[[Path], AnyTable | None],
    fresh: bool,
) -> AnyTable:
    """Zeros; where a run of blocks begins (``fresh``), the rows of the coarse run's images, where it has some.

    Args:
        names: All training images of the scene.
        shape: Of a row.
        load: Model folder -> its table.
    """
    names = tuple(sorted(names))
    start = kind(names, torch.zeros(len(names), *shape), torch.zeros(len(names), dtype=torch.bool))
    if not fresh or config.stage != "blocks":
        return start
    try:
        folder = model_folder(coarse_folder(config))
    except UserError:  # Some ways to partition do without a coarse model.
        return start
    coarse = load(folder)
    return start if coarse is None else rows_of(coarse, names)
