"""A learned table with a row for each training image, shared by all blocks and ranks, and its Adam.

Every rank holds the same table and makes the same update, as for the shared decoder: the gradients of the active
blocks are summed over ranks in one buffer with a row for each block. A step trains on few images, so Adam updates only
their rows: each row has its own step count, and its moments do not change in other steps. The table is pinned by
subtracting the mean of the rows (``model/image_table.py``). That mean is updated along with the rows that change and
subtracted when a row is read, so the time of a step does not grow with the number of images.
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

# Adam's usual values, torch's defaults.
_BETAS = (0.9, 0.999)


class NoRows:
    """Stands in for a table that the settings do not ask for: learns, sends and saves nothing."""

    gradients: tuple[Tensor, ...] = ()

    def begin_step(self, live: bool, n_active: int) -> None:
        """Does nothing."""

    def take_gradient(self, position: int) -> None:
        """Does nothing."""

    def finish_step(self) -> None:
        """Does nothing."""

    def to_tensors(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def metadata(self) -> dict[str, str]:
        """No metadata."""
        return {}

    def load(self, path: Path) -> None:
        """Does nothing."""

    def retime(self, config: Config) -> None:
        """Does nothing."""


class ImageRows(ABC, Generic[AnyTable]):
    """The table, its moments and the gradients of a step; ``NoRows`` has the same interface.

    An image is *shown* when a block trains on it.
    """

    def __init__(self, config: Config, start: AnyTable, device: torch.device, clock_scale: float) -> None:
        """``start``: the table at step 0; ``clock_scale``: block steps per update of the table."""
        self._kind, self._names = type(start), start.names
        # Rows before the pin: their mean changes by at most one learning rate per update, which costs no precision.
        self._rows = start.rows.to(device, copy=True)
        self._seen = start.shown.to(device, copy=True)
        # In float64, so that the running sum does not drift from the sum of the rows.
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
        """To be replaced by their sums over the ranks before ``finish_step`` is called."""

    @property
    def table(self) -> AnyTable:
        """A copy of the present table; its cost grows with the number of images."""
        seen = self._seen.view(-1, *[1] * (self._rows.dim() - 1))
        return self._kind(self._names, self._rows - self._mean() * seen, self._seen.clone())

    def row(self, place: int) -> Tensor:
        """A copy of row ``place`` of the table, bit for bit the one of ``table``."""
        return self._rows[place] - self._mean() * self._seen[place]

    @abstractmethod
    def rate(self, config: Config) -> Callable[[float], float]:
        """Block steps done -> learning rate."""

    def retime(self, config: Config) -> None:
        """Takes the learning rates of ``config`` from the next step on; for a run with revised steps (``Pace``)."""
        self._rate = self.rate(config)

    def begin_step(self, live: bool, n_active: int) -> None:
        """
        Args:
            live: False: the rows are fixed in this step, like the decoder.
            n_active: k, the number of active blocks of all ranks.
        """
        self._live = live
        # The first element is the image's row number: float32 holds integers up to 2^24 exactly.
        size = 1 + self._rows[0].numel()
        self.gradients = (self._rows.new_zeros(n_active, size),) if live else ()

    def take_gradient(self, position: int) -> None:
        """Stores the gradient of the last image shown; ``position``: index of its block among the active ones."""
        assert self._shown is not None, "an image was shown"
        place, row = self._shown
        assert row.grad is not None, "the loss depends on the image's row"
        self.gradients[0][position, 0] = place
        self.gradients[0][position, 1:] = row.grad.flatten()

    @torch.no_grad()
    def finish_step(self) -> None:
        """Updates the rows of the images shown, each with the sum of its blocks' gradients, and the mean of the rows.

        The sum is a matrix product with zeros and ones, which has a fixed order on every device; adding by index does
        not on GPUs.
        """
        (buffer,) = self.gradients
        places, block_place = buffer[:, 0].long().unique(return_inverse=True)
        gradient = F.one_hot(block_place, len(places)).to(buffer).T @ buffer[:, 1:]
        self._show(places)
        self._move(places, gradient.view(-1, *self._rows.shape[1:]))
        self._updates += 1

    def _mean(self) -> Tensor:
        """Mean over the rows of the images shown so far; the pin subtracts it from them."""
        return (self._sum / self._count.clamp_min(1)).to(self._rows)

    def _show(self, places: Tensor) -> None:
        """Includes images in the mean. A new one starts at the mean, so that its pinned row is zero."""
        fresh = places[~self._seen[places]]
        self._rows[fresh] += self._mean()
        self._sum += self._rows[fresh].sum(0, dtype=torch.float64)
        self._count += len(fresh)
        self._seen[fresh] = True

    def _move(self, places: Tensor, gradient: Tensor) -> None:
        """One step of Adam (Kingma and Ba 2015) for the rows ``places``."""
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
        """All state but ``metadata``, for a checkpoint, on the host."""
        return {k: to_host(v) for k, v in self._state().items()} | {"updates": torch.tensor([self._updates])}

    def metadata(self) -> dict[str, str]:
        """The names of the images, for the header of the checkpoint's file."""
        return {"names": json.dumps(self._names)}

    def load(self, path: Path) -> None:
        """Reads a file of ``to_tensors`` and ``metadata``, bit for bit.

        Raises:
            UserError: if it is for other images.
        """
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            if names != self._names:
                strange = sorted(set(names) ^ set(self._names))
                raise UserError(
                    f"{path}: corrections of {len(names)} images, expected those of the {len(self._names)} training "
                    f"images; {len(strange)} are in only one of the two (first: {strange[0]}); resume with the images "
                    "of the run, or train anew without --resume"
                )
            held = set(file.keys())
            for name, tensor in self._state().items():
                # Files of earlier versions lack "sum": they subtracted the mean at every step, so the sum is zero.
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
    """The table at step 0: zeros, or in a new run of blocks the coarse run's rows for the images that it has.

    Args:
        names: All training images of the scene.
        shape: Shape of a row.
        load: Model folder -> its table; None if it has none.
        fresh: True: a new run; False: a checkpoint will be loaded, so zeros suffice.
    """
    names = tuple(sorted(names))
    start = kind(names, torch.zeros(len(names), *shape), torch.zeros(len(names), dtype=torch.bool))
    if not fresh or config.stage != "blocks":
        return start
    try:
        folder = model_folder(coarse_folder(config))
    except UserError:  # There is no coarse model; some ways to partition do not need one.
        return start
    coarse = load(folder)
    return start if coarse is None else rows_of(coarse, names)
