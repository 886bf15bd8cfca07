"""Stands in for a decoder in runs with splats, which need none; has the interface of ``SharedDecoder``."""

from collections.abc import Sequence

from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.background import Background
from momentum_gs.model.splats import Harmonics
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.splat_block import sh_degree_at


class NoDecoder:
    """Gives the degree of spherical harmonics at which a block is rendered, and the background; learns and sends
    nothing."""

    teacher = None
    updates = 0

    def __init__(self, config: Config, background: Background | None = None) -> None:
        """``background``: that of a student's first teacher, which stays as it is; None: there is no learned one."""
        self._config, self.background = config, background

    def student_of(self, block: Block) -> Harmonics:
        """The spherical harmonics with which a block is rendered at its present step."""
        return Harmonics(sh_degree_at(block.step, self._config), self.background)

    def begin_round(self, blocks: Sequence[int]) -> None:
        """Does nothing."""

    def end_round(self, finished: Sequence[int]) -> None:
        """Does nothing."""

    def begin_step(self, live: bool, n_active: int) -> None:
        """Does nothing."""

    def take_gradient(self, block: Block, position: int) -> None:
        """Does nothing."""

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Replaces the tensors ``beside`` by their sums over ranks."""
        comm.all_reduce_sums_(beside)

    def retime(self, config: Config) -> None:
        """Takes the schedule of ``config`` from the next step on; for a run with revised steps (``Pace``)."""
        self._config = config

    def to_tensors(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Does nothing."""
