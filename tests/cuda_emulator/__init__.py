"""Compiles CUDA sources with g++ and runs them on the CPU: the code that nvcc compiles. See README.md."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

INCLUDE = Path(__file__).parent / "include"
COMPILER = os.environ.get("CXX", "g++")
# -O1: half the compile time of -O2, and tests use small images. -fno-gnu-unique: a library that is built again has its
# own shared memory. -ffp-contract=off: every operation is rounded, as in the CPU operators that it is compared with.
FLAGS = ["-std=c++20", "-O1", "-g0", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-w"]


def why_not() -> str | None:
    """Why the emulator cannot run on this machine; None if it can."""
    return None if shutil.which(COMPILER) else f"no C++ compiler {COMPILER} for the CUDA emulator"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]


def _run(command: Sequence[str | Path], target: Path) -> None:
    """Writes ``target`` with ``command``, atomically: a compiler that is interrupted leaves none."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        done = subprocess.run([*map(str, command), "-o", str(output)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cuda_emulator: {' '.join(map(str, command))}\n{done.stderr}")
        output.replace(target)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time enters: of two test processes that need a library, one compiles it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(sources: Sequence[Path], headers: Path, defines: Mapping[str, Sequence[str]] | None = None) -> Path:
    """The shared library of ``sources`` (.cu and .cpp); kept below the system's temporary folder.

    Args:
        sources: compiled two at a time, each as C++.
        headers: the folder whose headers the sources include; a change of any of them compiles all sources again.
        defines: file name -> further flags of the compiler for this source, ``-D...``.
    """
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-I{INCLUDE}"]
    flags += [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
    read = sorted(path for folder in (INCLUDE, headers) for path in folder.rglob("*") if path.suffix in (".h", ".cuh"))
    common = _digest(torch.__version__.encode(), repr(flags).encode(), *(path.read_bytes() for path in read))
    cache = Path(tempfile.gettempdir()) / f"cuda_emulator_{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)

    def compiled(source: Path) -> Path:
        source = source.resolve()  # messages name it, so it is part of the key
        further = list((defines or {}).get(source.name, ()))
        own = [repr(further).encode()] if further else []
        target = cache / f"{_digest(common.encode(), str(source).encode(), source.read_bytes(), *own)}.o"
        if not target.exists():
            _run([COMPILER, *flags, *further, "-x", "c++", "-c", source], target)
        return target

    with _alone(cache / f"{_digest(common.encode(), *(str(source).encode() for source in sources))}.lock"):
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, sources))
        library = cache / f"{_digest(*(str(path).encode() for path in objects))}.so"
        if not library.exists():
            link = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
            _run([COMPILER, "-shared", *objects, *link], library)
    return library


def load(csrc: Path, defines: Mapping[str, Sequence[str]] | None = None) -> None:
    """Registers the operators of ``csrc/binding.cpp`` and ``csrc/cuda/*.cu`` as ``torch.ops.<library>_emulated``.

    ``defines`` as in ``build``; a process can load one build of a library.
    """
    torch.ops.load_library(build([csrc / "binding.cpp", *sorted(csrc.glob("cuda/*.cu"))], csrc, defines))


@contextmanager
def instead_of_cpu(name: str) -> Iterator[None]:
    """In this context the CPU operators of library ``name`` are the emulated ones, which its Python interface calls."""
    emulated = f"{name}_emulated::"
    operators = [op for op in torch._C._dispatch_get_all_op_names() if op.startswith(emulated)]
    with torch.library._scoped_library(name, "IMPL") as library:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # to override is what is wanted
            for operator in (op.removeprefix(emulated) for op in operators):
                if torch._C._dispatch_has_kernel_for_dispatch_key(emulated + operator, "CPU"):
                    library.impl(operator, getattr(getattr(torch.ops, f"{name}_emulated"), operator).default, "CPU")
        yield
