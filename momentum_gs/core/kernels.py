"""Checks of the four compiled packages: installed, ours, and built for the installed torch.

Three of them have the import names of 3DGS codebases, so other packages may be installed under the same names.
"""

import importlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

import momentum_gs
from momentum_gs.core.errors import UserError

PACKAGES = {
    "diff_gaussian_rasterization": ("ops", "project"),
    "simple_knn": ("_C", "mean_squared_distance"),
    "fused_ssim": ("ops", "image_loss"),
    "anchor_decode": ("ops", "decode"),
}
"""Package -> the module that loads its library, and an operator that only our package registers."""


def check_kernels() -> None:
    """Loads the four packages.

    Raises:
        UserError: naming the first that is missing, not ours, or compiled for another torch, and the command that
            repairs it.
    """
    for package, (module, operator) in PACKAGES.items():
        folder = _folder(package)
        if folder is None:
            raise UserError(f"kernels: the package {package} is not installed, expected momentum-gs's; {repair()}")
        if not (folder / "reference.py").is_file():  # Each of our packages has a reference in PyTorch.
            raise _stranger(package, folder)
        built = build_record(package).get("torch")
        versions = f"compiled for torch {built or 'of unknown version'}, found torch {torch.__version__}"
        if built is not None and _minor(built) != _minor(torch.__version__):
            raise UserError(f"kernels: {package} was {versions}; {repair()}")
        try:
            _module(package, module)
        except (ImportError, OSError) as error:
            why = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"kernels: {package} does not load ({why}), {versions}; {repair()}") from error
        if not hasattr(getattr(torch.ops, package), operator):
            raise _stranger(package, folder)


def build_record(package: str) -> dict[str, str | None]:
    """What the build recorded in built.json (submodules/build_rules.py): ``torch``, ``cpu``, ``gpus``; {} without."""
    folder = _folder(package)
    try:
        return dict(json.loads((folder / "built.json").read_text(encoding="utf-8"))) if folder else {}
    except (OSError, ValueError):
        return {}


def cpu_kernels() -> str:
    """The instruction set of the CPU kernels, e.g. ``x86-64-v4``; all packages choose the same.

    Raises:
        UserError: for a CPU that no variant runs on, or if MOMENTUM_GS_CPU names a variant that does not exist.
    """
    from fused_ssim import cpu_kernels as chosen

    try:
        return str(chosen())
    except RuntimeError as error:
        raise UserError(str(error)) from error


def repair(with_gpu: bool = False) -> str:
    """The command that reinstalls the four packages; ``with_gpu`` makes it fail if the GPU kernels cannot be built."""
    root = Path(momentum_gs.__file__).parents[1]
    force = "FORCE_CUDA=1 " if with_gpu else ""
    if (root / "scripts" / "setup.sh").is_file():
        return f"run: {force}bash {root / 'scripts' / 'setup.sh'}"
    return f"run in a checkout of momentum-gs: {force}pip install --no-build-isolation --no-deps --force-reinstall ."


def _module(package: str, module: str) -> ModuleType:
    return importlib.import_module(f"{package}.{module}")


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else Path(spec.origin or ".").parent


def _stranger(package: str, folder: Path) -> UserError:
    owners = metadata.packages_distributions().get(package, [])
    names = sorted({owner for owner in owners if owner != "momentum-gs"})
    remove = f"run: pip uninstall -y {' '.join(names)}; then " if names else ""
    versions = " and ".join(f"{name} {metadata.version(name)}" for name in names) or "no installed distribution"
    return UserError(
        f"kernels: {package} in {folder} comes from {versions}, expected the package that momentum-gs brings under "
        f"this name; {remove}{repair()}"
    )


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
