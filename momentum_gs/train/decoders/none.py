"""In the place of a decoder, for splats, which need none. The face is ``SharedDecoder``'s."""

from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.splats import Harmonics
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.splat_block import sh_degree_at


class NoDecoder:
    """Knows the degree at which each block's colours are evaluated; has nothing to learn, to send or to save."""

    teacher = None
    updates = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def student_of(self, block: Block) -> Harmonics:
        """What draws a block at its step."""
        return Harmonics(sh_degree_at(block.step, self._config))

    def begin_step(self, live: bool, n_active: int) -> None:
        """Nothing to move."""

    def take_gradient(self, block: Block, position: int) -> None:
        """Nothing to take."""

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Nothing to share but what others have to sum over ranks."""
        comm.all_reduce_sums_(beside)

    def retime(self, config: Config) -> None:
        """The clocks of a run whose number of steps is revised."""
        self._config = config

    def to_tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Nothing, as ``to_tensors``."""
