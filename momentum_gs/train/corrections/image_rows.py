"""A table with a row for each image in training: one for all blocks and ranks, and its Adam.

Every rank holds the same table and makes the same update, as for the shared decoder: the active blocks' gradients
travel in one buffer with a row for each of them. A step shows few images, so Adam moves the rows of these alone: a row
has a step count of its own, and its moments rest while it is not shown. The mean that the pin takes from all rows
(``model/image_table.py``) is kept up to date by the rows that move, and taken away where a row is read, so the time of
a step does not grow with the number of images.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
from momentum_gs.model.image_table import AnyTable, rows_of
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

    def retime(self, config: Config) -> None:
        """No clocks."""


class ImageRows(ABC, Generic[AnyTable]):
    """The table, its moments and the gradients of a step. The face of ``NoRows``."""

    def __init__(self, config: Config, start: AnyTable, device: torch.device, clock_scale: float) -> None:
        """``clock_scale``: block steps that pass per update of what all blocks share."""
        self._kind, self._names = type(start), start.names
        # Free of the pin: what all shown ones have in common grows by a rate an update at most and costs no precision.
        self._rows = start.rows.to(device, copy=True)
        self._seen = start.shown.to(device, copy=True)
        # In float64, so that the mean stays that of the rows over any number of steps.
        self._sum = self._rows.sum(0, dtype=torch.float64)
        self._count = self._seen.sum()
        self._moments = torch.zeros(2, *self._rows.shape, device=device)
        self._steps = torch.zeros(len(start.names), dtype=torch.int64, device=device)
        self._updates = 0
        self._place = {name: i for i, name in enumerate(start.names)}
        self._rate, self._eps, self._clock_scale = self.rate(config), config.optim.eps, clock_scale
        self._live = False
        self._shown: tuple[int, Tensor] | None = None
        self.gradients: tuple[Tensor, ...] = ()
        """What ``finish_step`` wants summed over the ranks before it is called."""

    @property
    def table(self) -> AnyTable:
        """The table as it is now, a copy; takes time with the number of images."""
        seen = self._seen.view(-1, *[1] * (self._rows.dim() - 1))
        return self._kind(self._names, self._rows - self._mean() * seen, self._seen.clone())

    def row(self, place: int) -> Tensor:
        """One row of the table, bit for bit, a copy."""
        return self._rows[place] - self._mean() * self._seen[place]

    @abstractmethod
    def rate(self, config: Config) -> Callable[[float], float]:
        """Block steps done -> learning rate."""

    def retime(self, config: Config) -> None:
        """Other rates from the next step on, as a run whose number of steps is revised has them."""
        self._rate = self.rate(config)

    def begin_step(self, live: bool, n_active: int) -> None:
        """
        Args:
            live: False: the rows are fixed, as the decoder is.
            n_active: k, active blocks of all ranks.
        """
        self._live = live
        # The image's number comes first: whole numbers up to 2^24 are exact in float32.
        size = 1 + self._rows[0].numel()
        self.gradients = (self._rows.new_zeros(n_active, size),) if live else ()

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
        self._show(places)
        self._move(places, gradient.view(-1, *self._rows.shape[1:]))
        self._updates += 1

    def _mean(self) -> Tensor:
        """What the pin takes from the rows of images shown: their mean."""
        return (self._sum / self._count.clamp_min(1)).to(self._rows)

    def _show(self, places: Tensor) -> None:
        """Has images in the mean from now on; those that were not are where the pin leaves them, at zero."""
        fresh = places[~self._seen[places]]
        self._rows[fresh] += self._mean()
        self._sum += self._rows[fresh].sum(0, dtype=torch.float64)
        self._count += len(fresh)
        self._seen[fresh] = True

    def _move(self, places: Tensor, gradient: Tensor) -> None:
        """One step of Adam (Kingma and Ba 2015) for these rows."""
        self._steps[places] += 1
        steps = self._steps[places].to(gradient).view(-1, *[1] * (gradient.dim() - 1))
        mean, square = self._moments[:, places]
        mean, square = mean.lerp(gradient, 1 - _BETAS[0]), square.lerp(gradient.square(), 1 - _BETAS[1])
        self._moments[0, places], self._moments[1, places] = mean, square
        usual = (square / (1 - _BETAS[1] ** steps)).sqrt() + self._eps
        rate = self._rate(self._updates * self._clock_scale)
        before = self._rows[places]
        after = before - rate * mean / (1 - _BETAS[0] ** steps) / usual
        self._rows[places] = after
        self._sum += (after.double() - before.double()).sum(0)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs beside ``metadata``, on the host."""
        return {k: to_host(v) for k, v in self._state().items()} | {"updates": torch.tensor([self._updates])}

    def metadata(self) -> dict[str, str]:
        """The images' names, for the file's header."""
        return {"names": json.dumps(self._names)}

    def load(self, path: Path) -> None:
        """Reads what ``to_tensors`` and ``metadata`` gave, bit for bit.

        Raises:
            UserError: it is of other images.
        """
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            if names != self._names:
                strange = sorted(set(names) ^ set(self._names))
                raise UserError(
                    f"{path}: corrections of {len(names)} images, the scene trains on {len(self._names)}, and "
                    f"{len(strange)} are in one alone (first: {strange[0]}); resume with the images of the run, or "
                    "train anew without --resume"
                )
            held = set(file.keys())
            for name, tensor in self._state().items():
                # Rows of earlier versions had the mean taken away at every step, so their sum is zero.
                tensor.copy_(file.get_tensor(name) if name in held else torch.zeros(()))
            self._count = self._seen.sum()
            self._updates = int(file.get_tensor("updates"))

    def _state(self) -> dict[str, Tensor]:
        return {
            "rows": self._rows, "shown": self._seen, "sum": self._sum, "moments": self._moments, "steps": self._steps
        }  # fmt: skip


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
