"""Counts, on a CPU, the places where a program reads a tensor's values on the host: on a GPU each of them waits."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(__file__).parents[1] / "momentum_gs"
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2", "_unique",
    "unique_consecutive", "bincount", "_assert_async",
}  # fmt: skip
"""Operators whose result, or its shape, the host must know: int(), bool() and item() are the first of them."""
METHODS = ("tolist", "numpy", "cpu")
"""Methods that read on the host without an operator, if the tensor is on the CPU."""


class HostReads(TorchDispatchMode):
    """Counts reads by their place in the package; those within compiled operators are not among them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._active = False
        for name in METHODS:
            monkeypatch.setattr(Tensor, name, self._counted(name, getattr(Tensor, name)))

    def __enter__(self) -> "HostReads":
        self._active = True
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._active = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or by_mask or repeats:
            self._count(name)
        return func(*args, **(kwargs or {}))

    def _count(self, what: str) -> None:
        own = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
        place = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "outside"
        self.found[f"{place} {what}"] += 1

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._active:
                self._count(name)
            return method(tensor, *args, **kwargs)

        return call
