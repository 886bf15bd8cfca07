"""Adam for the rows that a step shows, which leaves the others as they are."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-15
"""As in 3DGS."""


class RowAdam:
    """Adam whose step reads and writes only some rows.

    A view shows a small part of a scene. Dense Adam would need gradients and time for all rows, and would go on moving
    rows that no view shows. Each row counts its own steps, for the bias correction.
    """

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        """``rows``: tensors by name with one row per Gaussian; steps change them in place."""
        self._rows = {name: row.detach() for name, row in rows.items()}
        self._first = {name: torch.zeros_like(row) for name, row in self._rows.items()}
        self._second = {name: torch.zeros_like(row) for name, row in self._rows.items()}
        any_row = next(iter(self._rows.values()))
        self._steps = any_row.new_zeros(len(any_row))

    def leaves(self, index: Int[Tensor, "m"]) -> dict[str, Tensor]:
        """Copies of the rows at ``index``, which is distinct; they require gradients."""
        return {name: row.index_select(0, index).requires_grad_() for name, row in self._rows.items()}

    @torch.no_grad()
    def step(self, index: Int[Tensor, "m"], leaves: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Moves the rows at ``index`` by the gradients of their ``leaves``; ``rates`` are learning rates by name."""
        self._steps.index_add_(0, index, self._steps.new_ones(len(index)))
        steps = self._steps.index_select(0, index)
        corrections = [1 - beta**steps for beta in BETAS]
        for name, leaf in leaves.items():
            if leaf.grad is None or leaf.numel() == 0:
                continue
            wide = [correction.view(-1, *[1] * (leaf.ndim - 1)) for correction in corrections]
            first = self._first[name].index_select(0, index).lerp_(leaf.grad, 1 - BETAS[0])
            second = self._second[name].index_select(0, index).lerp_(leaf.grad.square(), 1 - BETAS[1])
            self._first[name].index_copy_(0, index, first)
            self._second[name].index_copy_(0, index, second)
            change = first.div_(wide[0]).div_(second.div_(wide[1]).sqrt_().add_(EPS))
            self._rows[name].index_copy_(0, index, leaf.detach() - rates[name] * change)
