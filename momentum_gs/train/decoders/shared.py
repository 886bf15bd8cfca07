"""The decoder that all blocks share: student, momentum teacher, one Adam state.

Every rank holds the same copy and makes the same update from the same averaged gradient, so the teacher needs no
broadcast. The original keeps Adam moments per block (restored stale) and moves the teacher on rank 0 only.
"""

import copy

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.decoders.learner import DecoderLearner

EXACT_BLOCKS = 64
"""Rows of the gradient's buffer: 1.6 MB a step for the default decoder. With more active blocks some share a row, and
the last bits of their sum depend on the number of ranks."""


class SharedDecoder:
    """Student, teacher and optimizer state."""

    def __init__(self, config: Config, device: torch.device, clock_scale: float) -> None:
        """``clock_scale``: block steps that pass per decoder update, so that its learning rates end with the blocks."""
        self._learner = DecoderLearner(config, device)
        self.student = self._learner.module
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.updates = 0
        self._momentum = config.teacher.momentum
        self._clock_scale = clock_scale

    def student_of(self, block: Block) -> GaussianDecoder:
        """The decoder that draws a block."""
        return self.student

    def begin_step(self, live: bool, n_active: int) -> None:
        """Moves the teacher (eq. 4), before anything is rendered, as the original does.

        Args:
            live: False: the decoder is fixed.
            n_active: k, active blocks of all ranks.
        """
        self.student.requires_grad_(live)
        if not live:
            return
        move_teacher(self.teacher, self.student, self._momentum)
        parameter = next(self.student.parameters())
        size = sum(p.numel() for p in self.student.parameters())
        self._n_active = n_active
        self._gradients = parameter.new_zeros(min(n_active, EXACT_BLOCKS), size)

    def take_gradient(self, block: Block, position: int) -> None:
        """Sets the gradient of one block's loss aside; ``position``: of the block among the active ones."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.student.parameters()]
        self._gradients[position % EXACT_BLOCKS] += torch.cat([part.reshape(-1) for part in parts])
        self.student.zero_grad()

    def finish_step(self, comm: Comm, *beside: Tensor) -> None:
        """Averages the gradient over the active blocks of all ranks (one flat all-reduce) and steps.

        Every block has a row of the buffer to itself. A sum over ranks then only adds zeros, and the sum over blocks
        has one order: the bits of the mean do not depend on the number of ranks.

        Args:
            beside: What else to replace by its sum over ranks, in the same message.
        """
        comm.all_reduce_sums_([self._gradients, *beside])
        mean = self._gradients.sum(dim=0) / self._n_active
        parameters = list(self.student.parameters())
        for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._learner.step(self.updates * self._clock_scale)
        self.updates += 1

    def retime(self, config: Config) -> None:
        """The clocks of a run whose number of steps is revised."""
        self._learner.retime(config.optim)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs."""
        return self._learner.to_tensors() | {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of ``to_tensors``, bit for bit."""
        self.updates = updates
        self._learner.load_tensors(tensors)
        self.teacher.load_state_dict(
            {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
        )


@torch.no_grad()
def move_teacher(teacher: GaussianDecoder, student: GaussianDecoder, momentum: float) -> None:
    """theta_t <- m * theta_t + (1 - m) * theta_s [eq. 4]."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - momentum)
