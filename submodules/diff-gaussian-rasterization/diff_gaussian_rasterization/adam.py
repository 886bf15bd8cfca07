"""Adam that moves only the Gaussians that a view shows."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization import ops  # noqa: F401  (loads the operators)


def adam_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    lrs: Sequence[float],
    steps: Sequence[int] | None,
    visible: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
) -> None:
    """One step of Adam, in place, for all tensors in one kernel. ``reference.adam_reference`` is the same, readable.

    Args:
        params: tensors [G,...], float32 or float64; all of them contiguous, as their gradients and moments.
        grads: their gradients.
        moments: running means of the gradients, which are updated.
        squares: running means of their squares, which are updated.
        lrs: learning rate of each tensor.
        steps: which step this is for each tensor, from 1, for Adam's bias corrections; None: none, as in 3DGS
            codebases.
        visible: bool [G], the rows that are moved; the others keep their values and moments to the bit. None: all.
        betas: decay of the two running means.
        eps: added to the root of ``squares``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or a tensor is not contiguous.
    """
    rates, roots2 = list(map(float, lrs)), [1.0] * len(params)
    if steps is not None:
        rates = [lr / (1 - betas[0] ** step) for lr, step in zip(rates, steps, strict=True)]
        roots2 = [math.sqrt(1 - betas[1] ** step) for step in steps]
    with torch.no_grad():
        torch.ops.diff_gaussian_rasterization.adam_update(
            list(params), list(grads), list(moments), list(squares), visible, rates, roots2, *betas, eps
        )


class SparseGaussianAdam(torch.optim.Adam):
    """Adam whose step leaves the Gaussians that are not visible as they are; the interface of 3DGS codebases.

    As there, a step has betas 0.9 and 0.999 and no bias correction, and ``state[param]`` holds ``exp_avg`` and
    ``exp_avg_sq``, which densification edits along with the rows.
    """

    def __init__(self, params: Any, lr: float, eps: float) -> None:
        super().__init__(params=params, lr=lr, eps=eps)

    @torch.no_grad()
    def step(self, visibility: Tensor, N: int) -> None:  # type: ignore[override]  # noqa: N803 (names in 3DGS)
        """Moves the rows where ``visibility`` [N] is true, in one kernel for all groups with the same eps.

        Args:
            visibility: bool [N].
            N: number of Gaussians, the first size of every parameter.

        Raises:
            ValueError: a group has several parameters, or a parameter or ``visibility`` has not N rows.
        """
        visible = visibility.reshape(-1).to(torch.bool)
        if len(visible) != N:
            raise ValueError(f"SparseGaussianAdam: visibility has {len(visible)} entries, expected N={N}")
        together: dict[float, list[tuple[Tensor, float]]] = {}
        for group in self.param_groups:
            if len(group["params"]) != 1:
                raise ValueError(f"SparseGaussianAdam: a group has {len(group['params'])} parameters, expected one")
            param = group["params"][0]
            if param.grad is None:
                continue
            if len(param) != N:
                raise ValueError(f"SparseGaussianAdam: a parameter has shape {list(param.shape)}, expected {N} rows")
            if not self.state[param]:
                self.state[param]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[param]["exp_avg"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.contiguous_format)
            together.setdefault(group["eps"], []).append((param, group["lr"]))
        for eps, moved in together.items():
            params = [param for param, _ in moved]
            moments, squares = ([self.state[param][name] for param in params] for name in ("exp_avg", "exp_avg_sq"))
            grads = [param.grad.contiguous() for param in params]
            adam_update(
                params, grads, moments, squares, lrs=[lr for _, lr in moved], steps=None, visible=visible, eps=eps
            )
