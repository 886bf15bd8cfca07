"""Edits of row-aligned tensors and of the Adam moments that belong to the same rows.

``rows`` is a dict of tensors that share their first dimension, such as ``Anchors.rows()``. A row that learns is the
only parameter of an optimizer group whose ``name`` is its key; the others are plain tensors. After an edit the learning
rows are new leaves without a gradient, so an optimizer step rests them until the next backward pass.

Source: cat_tensors_to_optimizer and _prune_anchor_optimizer of Scaffold-GS, scene/gaussian_model.py.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Adam

try:
    from torch_scatter import scatter_max as _torch_scatter_max
except ImportError:
    _torch_scatter_max = None

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state that has a row for every row of the parameter; its ``step`` counts for the whole group."""


def keep_rows(rows: Mapping[str, Tensor], mask: Bool[Tensor, "n"], optimizer: Adam | None) -> dict[str, Tensor]:
    """The rows where ``mask`` holds, in their order, with their moments."""
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
        ValueError: a row is not the tensor that the optimizer's group of its name moves.
    """
    groups = {} if optimizer is None else {group["name"]: group for group in optimizer.param_groups}
    edited = {}
    for name, row in rows.items():
        added = None if new is None else new[name].detach()
        edited[name] = _edit(row.detach(), kept, added).requires_grad_(row.requires_grad)
        if optimizer is not None and name in groups:
            if groups[name]["params"][0] is not row:
                raise ValueError(f"rows: '{name}' is not the tensor that the optimizer's group of this name moves")
            state = optimizer.state.pop(row, {})
            groups[name]["params"] = [edited[name]]
            if state:
                at_rest = None if added is None else added.new_zeros(()).expand_as(added)
                optimizer.state[edited[name]] = state
                for key in MOMENTS:
                    state[key] = _edit(state[key], kept, at_rest)
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


def scatter_max(src: Float[Tensor, "m f"], index: Int[Tensor, "m"], n_rows: int) -> Float[Tensor, "n f"]:
    """Row r is the entry-wise maximum of the rows of ``src`` whose index is r; zero where there is none.

    By torch_scatter where it is installed, else by torch's own reduction; the two agree bit for bit.
    """
    if _torch_scatter_max is not None:
        found: Tensor = _torch_scatter_max(src, index.unsqueeze(1).expand_as(src), dim=0, dim_size=n_rows)[0]
        return found
    return scatter_max_torch(src, index, n_rows)


def scatter_max_torch(src: Float[Tensor, "m f"], index: Int[Tensor, "m"], n_rows: int) -> Float[Tensor, "n f"]:
    """``scatter_max`` without torch_scatter."""
    empty = src.new_zeros(n_rows, src.shape[1])
    return empty.scatter_reduce(0, index.unsqueeze(1).expand_as(src), src, "amax", include_self=False)
