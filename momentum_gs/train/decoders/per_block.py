"""Decoders of one block each, as blocks have them that train independently (Tables 5 and 7).

A block carries its decoder with it (``Block.own``) and nothing is averaged. The face is ``SharedDecoder``'s.
"""

from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.decoders.learner import DecoderLearner


class PerBlockDecoders:
    """Finds each block's own."""

    teacher = None
    updates = 0

    def __init__(self) -> None:
        self._live = True

    def student_of(self, block: Block) -> GaussianDecoder:
        """The decoder that draws a block."""
        return _own(block).module.requires_grad_(self._live)

    def begin_step(self, live: bool, n_active: int) -> None:
        """``live``: false: the decoders are fixed."""
        self._live = live

    def take_gradient(self, block: Block, position: int) -> None:
        """The block's decoder moves along the block's own gradient."""
        _own(block).step(block.step)

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Nothing to share but what others have to sum over ranks."""
        comm.all_reduce_sums_(beside)

    def retime(self, config: Config) -> None:
        """Nothing: only a run of one block is revised, which has a shared decoder."""

    def to_tensors(self) -> dict[str, Tensor]:
        """Nothing: the blocks' files hold it."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Nothing, as ``to_tensors``."""


def _own(block: Block) -> DecoderLearner:
    assert block.own is not None, f"block {block.block} has no decoder of its own"
    return block.own
