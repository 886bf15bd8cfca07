"""One decoder for each block, for blocks that train independently (Tables 5 and 7).

The decoder is part of the block (``Block.own``), and no gradients are averaged. The interface is ``SharedDecoder``'s.
"""

from collections.abc import Sequence

from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.decoders.learner import DecoderLearner


class PerBlockDecoders:
    """Accesses the decoder of each block; keeps none itself."""

    teacher = None
    updates = 0

    def __init__(self) -> None:
        self._live = True

    def student_of(self, block: Block) -> GaussianDecoder:
        """The decoder with which a block is rendered."""
        return _own(block).module.requires_grad_(self._live)

    def begin_round(self, blocks: Sequence[int]) -> None:
        """Does nothing: every decoder belongs to one block."""

    def end_round(self, finished: Sequence[int]) -> None:
        """Does nothing: every decoder belongs to one block."""

    def begin_step(self, live: bool, n_active: int) -> None:
        """``live``: False: the decoders are fixed in this step."""
        self._live = live

    def take_gradient(self, block: Block, position: int) -> None:
        """One optimizer step of the block's decoder, with the block's own gradient."""
        _own(block).step(block.step)

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Replaces the tensors ``beside`` by their sums over ranks."""
        comm.all_reduce_sums_(beside)

    def retime(self, config: Config) -> None:
        """Does nothing: steps are revised only in the coarse stage and with windows, which share one decoder."""

    def to_tensors(self) -> dict[str, Tensor]:
        """No tensors: the decoders are in the blocks' files."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Does nothing."""


def _own(block: Block) -> DecoderLearner:
    assert block.own is not None, f"block {block.block} has no decoder of its own"
    return block.own
