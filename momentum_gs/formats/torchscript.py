"""Reads the tensors of a TorchScript archive without running anything in it.

Such an archive is a zip of code, of tensors (``data/<number>``, raw numbers) and of ``data.pkl``, which says which
module holds which tensor. ``torch.jit.load`` would compile the code, and unpickling calls what a file names. Here the
instructions of ``data.pkl`` are only followed as a description: modules become ``Module``, tensors are built from their
raw numbers, and an archive that asks for anything else is refused.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "LongStorage": torch.int64,
}
_MOST_INSTRUCTIONS, _MOST_NUMBERS = 1 << 22, 1 << 28
"""Bytes of ``data.pkl`` and of one tensor: decoders and appearance codes are far smaller."""
_REBUILD, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"


@dataclass
class Module:
    """A module by the name of its class, with its attributes: tensors, modules and plain values."""

    kind: str
    """Name of the class without its package: ``Linear``, ``Sequential``."""
    attributes: dict[str, Any] = field(default_factory=dict)

    def module(self, name: str) -> "Module | None":
        """The module of that name, if there is one."""
        found = self.attributes.get(name)
        return found if isinstance(found, Module) else None

    def tensor(self, name: str) -> Tensor | None:
        """The tensor of that name as float32, if there is one of floating-point numbers."""
        found = self.attributes.get(name)
        return found.float() if isinstance(found, Tensor) and found.is_floating_point() else None


@dataclass(frozen=True)
class _Name:
    """What an instruction names by its package; never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    numbers: Tensor


_MARK = object()


def read_torchscript(path: Path) -> Module:
    """The module that an archive of ``torch.jit.save`` describes.

    Raises:
        UserError: the file is missing, damaged or no such archive, or it holds more than modules and tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a TorchScript archive of the decoder; copy the whole folder")
    with _refusing(path), zipfile.ZipFile(path) as archive:
        inner = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(inner) != 1:
            raise ValueError("no data.pkl")
        root = inner[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and _content(archive, f"{root}byteorder", 64) != b"little":
            raise ValueError("numbers that are not little-endian")
        stated = _Description(lambda key, dtype: _numbers(archive, root, key, dtype)).follow(
            _content(archive, inner[0], _MOST_INSTRUCTIONS)
        )
        if not isinstance(stated, Module):
            raise ValueError("no module")
        return stated


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns what damaged archives raise into a UserError."""
    try:
        yield
    except Exception as error:  # Of zipfile, zlib, pickletools, torch and this module; any of them is a damaged file.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{path}: not readable without running it ({type(error).__name__}: {reason}), expected a TorchScript "
            "archive of linear layers; load it with the program that wrote it and save it with torch.jit.save again"
        ) from error


def _content(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if archive.getinfo(name).file_size > limit:
        raise ValueError(f"{name} is larger than {limit} bytes")
    return archive.read(name)


def _numbers(archive: zipfile.ZipFile, root: str, key: str, dtype: torch.dtype) -> Tensor:
    if not key.isdecimal():
        raise ValueError(f"a tensor file named {key!r}")
    content = _content(archive, f"{root}data/{key}", _MOST_NUMBERS)
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


class _Description:
    """Follows the instructions of ``data.pkl`` on a stack, as the pickle machine does, but calls nothing."""

    def __init__(self, numbers: Callable[[str, torch.dtype], Tensor]) -> None:
        """``numbers``: (key, dtype) -> the numbers of a tensor file."""
        self._numbers = numbers
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, instructions: bytes) -> Any:
        """The object that the instructions describe. Raises ValueError and others for what they must not ask for."""
        for code, argument, _ in pickletools.genops(instructions):
            if code.name == "STOP":
                return self._stack.pop()
            step = getattr(self, f"_{code.name.lower()}", None)
            if step is not None:
                step(argument)
            elif code.name in _PLAIN:
                self._stack.append(argument)
            elif code.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[code.name]())
            elif code.name not in ("PROTO", "FRAME"):
                raise ValueError(f"the instruction {code.name}")
        raise ValueError("no end")

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _since_mark(self) -> list[Any]:
        at = max(i for i, value in enumerate(self._stack) if value is _MARK)
        taken = self._stack[at + 1 :]
        del self._stack[at:]
        return taken

    def _global(self, argument: str) -> None:
        self._stack.append(_Name(argument))

    def _binput(self, argument: int) -> None:
        self._memo[argument] = self._stack[-1]

    _long_binput = _binput

    def _binget(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    _long_binget = _binget

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._dictionary()[key] = value

    def _setitems(self, _: Any) -> None:
        pairs = self._since_mark()
        self._dictionary().update(zip(pairs[::2], pairs[1::2], strict=True))

    def _dictionary(self) -> dict[Any, Any]:
        if not isinstance(self._stack[-1], dict):
            raise ValueError("items of what is no dictionary")
        return self._stack[-1]

    def _newobj(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, _Name) or not name.text.startswith("__torch__") or arguments != ():
            raise ValueError(f"an object of {name!r}")
        self._stack.append(Module(name.text.split()[-1]))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        if not isinstance(self._stack[-1], Module) or not isinstance(state, dict):
            raise ValueError("a state of what is no module")
        self._stack[-1].attributes.update(state)

    def _binpersid(self, _: Any) -> None:
        kind, storage, key, _place, count = self._stack.pop()
        if kind != "storage" or not isinstance(storage, _Name):
            raise ValueError(f"a reference to {kind!r}")
        numbers = self._numbers(key, _DTYPES[storage.text.split()[-1]])
        if len(numbers) != count:
            raise ValueError(f"{len(numbers)} of {count} numbers of a tensor")
        self._stack.append(_Storage(numbers))

    def _reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if name == _Name(_DICT) and arguments == ():
            self._stack.append({})
        elif name == _Name(_REBUILD):
            self._stack.append(_tensor(*arguments[:4]))
        else:
            raise ValueError(f"a call of {getattr(name, 'text', name)!r}")


_PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A view of the numbers; refuses one that would reach beyond them."""
    numbers = storage.numbers
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0 or math.prod(size) > len(numbers):
        raise ValueError(f"a tensor of {size} numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(numbers):
        raise ValueError(f"a tensor that reaches beyond its {len(numbers)} numbers")
    return numbers.as_strided(size, stride, offset).clone()
