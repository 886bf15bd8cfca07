"""The decoder that all blocks share: student, momentum teacher and one Adam state.

Every rank holds a copy and makes the same update from the same averaged gradient, so the teacher needs no broadcast.
The original updates the teacher on rank 0 only, keeps Adam moments per block (``blocks.decoder_moments``), which are
stale when a block becomes active again, and saves the decoder of block 0 (``blocks.saved_decoder``).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.decoders.learner import DecoderLearner

EXACT_BLOCKS = 64
"""Rows of the gradient buffer; with the default decoder 1.6 MB are sent per step. With more active blocks, some share a
row, and the last bits of their sum depend on the number of ranks."""


class SharedDecoder:
    """Student, teacher and optimizer state."""

    def __init__(
        self, config: Config, device: torch.device, clock_scale: float, start: GaussianDecoder | None = None
    ) -> None:
        """
        Args:
            clock_scale: Block steps per decoder update; converts updates to the block steps that set its rates.
            start: Weights of the student and the teacher at first; None: random ones.
        """
        self._learner = DecoderLearner(config, device)
        self.student = self._learner.module
        if start is not None:
            self.student.load_state_dict(start.state_dict())
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        # Found once: walking through the modules at every step would take as long as some of its operators.
        self._parameters: list[Tensor] = list(self.student.parameters())
        self._taught: list[Tensor] = list(self.teacher.parameters())
        self.updates = 0
        self._kept: GaussianDecoder | None = None
        self._settings = config.blocks
        self._momentum = config.teacher.momentum
        self._clock_scale = clock_scale

    @property
    def saved(self) -> GaussianDecoder:
        """The decoder of the merged model (``blocks.saved_decoder``)."""
        return self.student if self._kept is None else self._kept

    def student_of(self, block: Block) -> GaussianDecoder:
        """The decoder with which a block is rendered: the student."""
        return self.student

    def begin_round(self, blocks: Sequence[int]) -> None:
        """Takes the moments of these blocks where each set of them has its own (``blocks.decoder_moments``)."""
        if self._settings.decoder_moments == "per_round":
            self._learner.switch("-".join(map(str, sorted(blocks))))

    def end_round(self, finished: Sequence[int]) -> None:
        """Keeps the decoder as it is if block 0 is among the blocks that finished their last round with this one and
        its decoder is to be saved."""
        if self._settings.saved_decoder == "block_0" and 0 in finished:
            self._kept = copy.deepcopy(self.student).requires_grad_(False)

    def begin_step(self, live: bool, n_active: int) -> None:
        """Updates the teacher, theta_t <- m * theta_t + (1 - m) * theta_s (eq. 4), before rendering as in the original,
        and clears the gradient buffer.

        Args:
            live: False: the decoder is fixed in this step.
            n_active: k, the number of active blocks of all ranks.
        """
        for parameter in self._parameters:
            parameter.requires_grad_(live)
        if not live:
            return
        with torch.no_grad():
            torch._foreach_lerp_(self._taught, self._parameters, 1.0 - self._momentum)
        size = sum(p.numel() for p in self._parameters)
        self._n_active = n_active
        self._gradients = self._parameters[0].new_zeros(min(n_active, EXACT_BLOCKS), size)

    def take_gradient(self, block: Block, position: int) -> None:
        """Stores the gradient of a block's loss in the buffer; ``position``: index of the block among the active."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._gradients[position % EXACT_BLOCKS] += torch.cat([part.reshape(-1) for part in parts])
        for parameter in self._parameters:
            parameter.grad = None

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Averages the gradient over the active blocks of all ranks (one flat all-reduce) and updates the student.

        Every block has its own row of the buffer. So the sum over ranks only adds zeros, and the sum over blocks has a
        fixed order: the mean is bit for bit the same for any number of ranks.

        Args:
            beside: Further tensors to replace by their sums over ranks, in the same message.
        """
        comm.all_reduce_sums_([self._gradients, *beside])
        mean = self._gradients.sum(dim=0) / self._n_active
        parts = mean.split([p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self._learner.step(self.updates * self._clock_scale)
        self.updates += 1

    def retime(self, config: Config) -> None:
        """Takes the learning rates of ``config`` from the next step on; for a run with revised steps (``Pace``)."""
        self._learner.retime(config.optim)

    def to_tensors(self) -> dict[str, Tensor]:
        """Student, teacher and Adam state by name; not copies. ``updates`` is to be stored beside them."""
        kept = {} if self._kept is None else {f"kept.{k}": v for k, v in self._kept.state_dict().items()}
        teacher = {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        return self._learner.to_tensors() | teacher | kept

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of ``to_tensors``, bit for bit."""
        self.updates = updates
        self._learner.load_tensors(tensors)
        self.teacher.load_state_dict(
            {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
        )
        if kept := {k.removeprefix("kept."): v for k, v in tensors.items() if k.startswith("kept.")}:
            self._kept = copy.deepcopy(self.teacher)
            self._kept.load_state_dict(kept)
