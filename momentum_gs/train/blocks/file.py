"""An inactive block as one safetensors file, the same in the store and in a checkpoint, with its size and SHA-256."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.train.blocks.packed import ROWS, PackedBlock, current_name

# Names of the format's element types (safetensors specification).
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum by which a damaged file is detected."""

    size: int
    """Bytes."""
    sha256: str

    def mismatch(self, path: Path) -> str | None:
        """How the file at ``path`` differs from this record; None if it does not. Reads the whole file."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"{path.name} has {size} bytes, expected {self.size}"
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(_CHUNK):
                    digest.update(part)
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror})"
        return None if digest.hexdigest() == self.sha256 else f"{path.name} has another SHA-256 than when written"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> FileRecord:
    """Writes tensors of any device in the safetensors format and flushes them to the disk.

    Used in place of the safetensors library's writer because it computes the hash without reading the file again, and
    reports a full disk as a UserError.

    Args:
        meta: Metadata of the header.

    Raises:
        UserError: if the disk is full.
    """
    header: dict[str, object] = {"__metadata__": dict(meta)}
    place = 0
    # Wide elements first, so that every tensor is aligned to its own elements.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    for name, tensor in ordered.items():
        end = place + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # The format wants the data aligned.
    digest, size = hashlib.sha256(), 0
    with enough_space(path, place), path.open("wb") as file:

        def write(part: bytes | memoryview) -> None:
            nonlocal size
            digest.update(part)
            size += file.write(part)

        write(len(text).to_bytes(8, "little"))
        write(text)
        for tensor in ordered.values():
            if tensor.numel():
                write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size, digest.hexdigest())


def write_block(path: Path, packed: PackedBlock) -> FileRecord:
    """Writes a block; raises UserError if the disk is full."""
    return write_tensors(path, packed.tensors, {"meta": json.dumps(packed.meta)})


def read_block(path: Path, pin: bool = False) -> PackedBlock:
    """Reads a block into newly allocated memory; ``pin``: page-locked, for transfers to a GPU."""
    with _opened(path) as file:
        meta: dict[str, int | float] = json.loads(file.metadata()["meta"])
        # The library maps the file into memory; without a copy, it would be read page by page during training.
        found = {current_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a handle, not a dict
        return PackedBlock({k: v.pin_memory() if pin else v.clone() for k, v in found.items()}, meta)


def read_rows(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The named rows of a block's model; the rest of the file is not read."""
    with _opened(path) as file:
        there = {current_name(name): name for name in file.keys()}  # noqa: SIM118
        return {name: file.get_tensor(there[ROWS + name]).clone() for name in names}


def read_part(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, by the rest of it; the rest of the file is not read."""
    with _opened(path) as file:
        there = {current_name(name): name for name in file.keys()}  # noqa: SIM118
        return {k.removeprefix(prefix): file.get_tensor(v).clone() for k, v in there.items() if k.startswith(prefix)}


def link(source: Path, target: Path) -> Path | None:
    """Hard-links ``source`` as ``target``; None if that is not possible there (e.g. on another file system)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        return None
    return target


def copy(source: Path, target: Path) -> None:
    """Copies a file and flushes the copy to the disk."""
    with enough_space(target, source.stat().st_size):
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """``link``, or ``copy`` if that is not possible."""
    if link(source, target) is None:
        copy(source, target)


@contextlib.contextmanager
def enough_space(path: Path, size: int) -> Iterator[None]:
    """Removes the half-written file ``path`` after an OSError, and turns a full disk into a UserError.

    ``size``: bytes to be written, for the message.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):  # Report the first error, not one of the clean-up.
            path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path.parent}: the disk is full, {size / 2**20:.1f} MiB wanted for {path.name}, {free / 2**20:.1f} MiB "
            "free; make room, then continue with --resume"
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged block file ({error}); continue from a checkpoint with --resume") from error
