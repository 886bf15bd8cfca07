"""Edits of row-aligned tensors and of the Adam moments that belong to the same rows.

``rows`` is a dict of tensors with the same first dimension, such as ``Anchors.rows()``. A learnable tensor is the only
parameter of the optimizer group whose ``name`` is its key; the others are plain tensors. After an edit, learnable
tensors are new leaves without a gradient, so optimizer steps skip them until the next backward pass.

Source: cat_tensors_to_optimizer and _prune_anchor_optimizer of Scaffold-GS, scene/gaussian_model.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Adam

try:
    from torch_scatter import scatter_max as _torch_scatter_max
except ImportError:
    _torch_scatter_max = None

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Entries of Adam's state with a row for every row of the parameter; ``step`` is one number for the whole parameter."""


def keep_rows(rows: Mapping[str, Tensor], mask: Bool[Tensor, "n"], optimizer: Adam | None) -> dict[str, Tensor]:
    """The rows where ``mask`` is true, in their order, with their moments."""
    return edit_rows(rows, mask.nonzero().squeeze(1), None, optimizer)


def append_rows(rows: Mapping[str, Tensor], new: Mapping[str, Tensor], optimizer: Adam | None) -> dict[str, Tensor]:
    """``rows`` followed by ``new``, which has the same keys; new rows have zero moments."""
    return edit_rows(rows, None, new, optimizer)


def edit_rows(
    rows: Mapping[str, Tensor],
    kept: Int[Tensor, "m"] | None,
    new: Mapping[str, Tensor] | None,
    optimizer: Adam | None,
) -> dict[str, Tensor]:
    """The rows at ``kept`` (None: all) followed by ``new`` (None: nothing), in one copy.

    Raises:
        ValueError: a tensor in ``rows`` is not the parameter of the optimizer group with its name.
    """
    groups = {} if optimizer is None else {group["name"]: group for group in optimizer.param_groups}
    edited = {}
    for name, row in rows.items():
        added = None if new is None else new[name].detach()
        edited[name] = _edit(row.detach(), kept, added).requires_grad_(row.requires_grad)
        if optimizer is not None and name in groups:
            if groups[name]["params"][0] is not row:
                raise ValueError(f"rows: '{name}' is not the parameter of the optimizer group with this name")
            state = optimizer.state.pop(row, {})
            groups[name]["params"] = [edited[name]]
            if state:
                zeros = None if added is None else added.new_zeros(()).expand_as(added)
                optimizer.state[edited[name]] = state
                for key in MOMENTS:
                    state[key] = _edit(state[key], kept, zeros)
    return edited


def _edit(row: Tensor, kept: Int[Tensor, "m"] | None, added: Tensor | None) -> Tensor:
    n_kept = len(row) if kept is None else len(kept)
    edited = row.new_empty(n_kept + (0 if added is None else len(added)), *row.shape[1:])
    if kept is None:
        edited[:n_kept] = row
    else:
        torch.index_select(row, 0, kept, out=edited[:n_kept])
    if added is not None:
        edited[n_kept:] = added
    return edited


def take_runs(table: Float[Tensor, "m f"], index: Int[Tensor, "g"]) -> Float[Tensor, "g f"]:
    """``table.index_select(0, index)`` for an ``index`` that never falls, with the same gradient bits in every run.

    The gradient of a row that is taken several times is a sum. On a GPU, that of ``index_select`` adds the terms in the
    order in which threads happen to come; here they are added in their order, which is also that on a CPU.
    """
    if not table.is_cuda or not table.requires_grad:
        return table.index_select(0, index)
    taken: Tensor = _TakeRuns.apply(table, index)
    return taken


def sum_runs(rows: Float[Tensor, "g f"], index: Int[Tensor, "g"], n_rows: int) -> Float[Tensor, "n f"]:
    """Row i: the sum, in order, of the ``rows`` whose ``index`` is i. ``index`` never falls; 0 where it has no i."""
    offsets = torch.searchsorted(index, torch.arange(n_rows + 1, device=index.device))
    # unsafe: the checks would wait for the device.
    return torch.segment_reduce(rows.contiguous(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0)


class _TakeRuns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.n_rows = len(table)
        return table.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return sum_runs(grads[0], index, ctx.n_rows), None


def scatter_max(src: Float[Tensor, "m f"], index: Int[Tensor, "m"], n_rows: int) -> Float[Tensor, "n f"]:
    """Row r is the entry-wise maximum of the rows of ``src`` whose index is r, or zero if there are none.

    Uses torch_scatter where it is installed, else torch's own reduction; the two agree bit for bit.
    """
    if _torch_scatter_max is not None:
        found: Tensor = _torch_scatter_max(src, index.unsqueeze(1).expand_as(src), dim=0, dim_size=n_rows)[0]
        return found
    return scatter_max_torch(src, index, n_rows)


def scatter_max_torch(src: Float[Tensor, "m f"], index: Int[Tensor, "m"], n_rows: int) -> Float[Tensor, "n f"]:
    """``scatter_max`` without torch_scatter."""
    empty = src.new_zeros(n_rows, src.shape[1])
    return empty.scatter_reduce(0, index.unsqueeze(1).expand_as(src), src, "amax", include_self=False)
