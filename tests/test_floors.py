"""Rules of the code that a test can check: which packages may import which, and what no file may contain.

Each rule checks the syntax tree of one file and names the offending line.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 1, "config": 2, "data": 3, "model": 4, "formats": 5, "render": 5, "partition": 6, "train": 6, "bake": 7,
    "eval": 7, "merge": 7, "aggregate": 8, "api": 8, "doctor": 8, "export": 8, "mesh": 8, "viewer": 9, "experiments": 9,
    "bench": 9, "cli": 10, "__main__": 11,
}  # fmt: skip
# The only files of the package that import each extension.
IMPORTERS = {
    "diff_gaussian_rasterization": {"momentum_gs/render/rasterize.py"},
    "simple_knn": {"momentum_gs/model/init.py"},
    # device.py and kernels.py ask what was built.
    "fused_ssim": {"momentum_gs/core/image.py", "momentum_gs/core/device.py", "momentum_gs/core/kernels.py"},
    "anchor_decode": {"momentum_gs/model/fused.py"},
    # (core/kernels.py loads all four by name, to say what is wrong with them.)
}
# Formats that run code when they are read.
CODE_ON_LOAD = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

Violation = tuple[int, str]
Rule = Callable[[str, ast.Module], Iterator[Violation]]


def imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, wherever in the file; relative names are resolved."""
    package = Path(path).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # 'from a import b' may import the module a.b.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports_point_down(path: str, tree: ast.Module) -> Iterator[Violation]:
    parts = Path(path).with_suffix("").parts
    here = parts[1]
    if parts[0] != "momentum_gs" or here not in {*FLOORS, "__init__"}:  # Another rule reports a package without floor.
        return
    for line, name in imports(tree, path):
        target = (name.split(".") + [""])[1]
        if not within(name, "momentum_gs") or target not in FLOORS or target == here:
            continue
        if here == "__init__":
            if target == "api":  # For type checkers alone: tests/test_api.py holds that torch is not loaded.
                continue
            yield line, f"the root imports {name}; it must stay importable without any floor"
        elif FLOORS[target] >= FLOORS[here]:
            yield line, f"{here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[target]})"


def every_package_has_a_floor(path: str, tree: ast.Module) -> Iterator[Violation]:
    parts = Path(path).with_suffix("").parts
    if parts[0] == "momentum_gs" and parts[1] not in {*FLOORS, "__init__"}:
        yield 1, f"{parts[1]} is on no floor; add it to FLOORS"


def extensions_know_only_torch(path: str, tree: ast.Module) -> Iterator[Violation]:
    if path.startswith("submodules/"):
        yield from ((line, f"imports {name}") for line, name in imports(tree, path) if within(name, "momentum_gs"))


def few_files_import_extensions(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Only few files of the package call the kernels, so that the interface of the kernels can change."""
    for line, name in imports(tree, path):
        if path.startswith("momentum_gs/") and path not in IMPORTERS.get(name.split(".")[0], {path}):
            yield line, f"imports {name}, which only {' and '.join(sorted(IMPORTERS[name.split('.')[0]]))} may import"


def processes_communicate_through_comm(path: str, tree: ast.Module) -> Iterator[Violation]:
    if path == "momentum_gs/core/comm.py":
        return
    yield from ((line, f"imports {name}") for line, name in imports(tree, path) if within(name, "torch.distributed"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield node.lineno, "uses torch.distributed"


def devices_are_named_in_one_place(path: str, tree: ast.Module) -> Iterator[Violation]:
    """In the package only: extensions register kernels for devices. A ``Literal[...]`` type names a setting."""
    if not path.startswith("momentum_gs/") or path == "momentum_gs/core/device.py":
        return
    types = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Subscript)
             and ast.unparse(node.value) in ("Literal", "typing.Literal") for inner in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in types:
            if node.value == "cuda" or node.value.startswith("cuda:"):
                yield node.lineno, f"names the device {node.value!r}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield node.lineno, "calls .cuda()"


def files_never_run_code(path: str, tree: ast.Module) -> Iterator[Violation]:
    for line, name in imports(tree, path):
        if name.split(".")[0] in CODE_ON_LOAD:
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
            yield node.lineno, f"calls {called}"
        if called == "torch.load" and options.get("weights_only") != "True":
            yield node.lineno, "calls torch.load without weights_only=True"
        if options.get("allow_pickle") == "True":
            yield node.lineno, "reads with allow_pickle=True"


def errors_are_named(path: str, tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "has a bare except"


def no_global_state(path: str, tree: ast.Module) -> Iterator[Violation]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"assigns the global {', '.join(node.names)}"


def annotations_are_real(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Postponed annotations are strings, which the shape checks of the tests cannot read."""
    for line, name in imports(tree, path):
        if name == "__future__.annotations":
            yield line, "postpones annotations"


RULES: list[Rule] = [
    imports_point_down, every_package_has_a_floor, extensions_know_only_torch, few_files_import_extensions,
    processes_communicate_through_comm, devices_are_named_in_one_place, files_never_run_code, errors_are_named,
    no_global_state, annotations_are_real,
]  # fmt: skip


def source_files() -> list[Path]:
    """Python files of the package and the extensions, without tests and build outputs."""
    found = [*ROOT.glob("momentum_gs/**/*.py"), *ROOT.glob("submodules/**/*.py")]
    return sorted(p for p in found if not {"build", "tests", ".venv"} & set(p.relative_to(ROOT).parts))


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Path -> syntax tree of every source file."""
    paths = {file.relative_to(ROOT).as_posix(): file for file in source_files()}
    return {path: ast.parse(file.read_text(encoding="utf-8"), filename=path) for path, file in paths.items()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_its_rules(rule: Rule, trees: dict[str, ast.Module]) -> None:
    found = [f"{path}:{line} {what}" for path, tree in trees.items() for line, what in rule(path, tree)]
    assert not found, "\n" + "\n".join(found)


def test_all_files_are_checked() -> None:
    """A wrong glob would make every rule hold."""
    paths = {file.relative_to(ROOT).as_posix() for file in source_files()}
    assert {"momentum_gs/core/types.py", "momentum_gs/cli/main.py", "momentum_gs/__main__.py"} <= paths
    extensions = {path.split("/")[2] for path in paths if path.startswith("submodules/") and "/" in path[11:]}
    assert extensions >= set(IMPORTERS)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (imports_point_down, "momentum_gs/core/x.py", "import momentum_gs.config.schema"),
        (imports_point_down, "momentum_gs/core/x.py", "from momentum_gs import data"),
        (imports_point_down, "momentum_gs/core/x.py", "def f():\n    from ..data.blocks import BlockGrid"),
        (imports_point_down, "momentum_gs/train/x.py", "from momentum_gs.partition.assign import y"),
        (imports_point_down, "momentum_gs/eval/x.py", "from momentum_gs.export import merge"),
        (imports_point_down, "momentum_gs/export/x.py", "if True:\n    from momentum_gs.cli.common import y"),
        (imports_point_down, "momentum_gs/__init__.py", "from momentum_gs.core import errors"),
        (every_package_has_a_floor, "momentum_gs/utils/x.py", ""),
        (extensions_know_only_torch, "submodules/simple-knn/simple_knn/x.py", "from momentum_gs.core import errors"),
        (few_files_import_extensions, "momentum_gs/train/x.py", "from simple_knn._C import distCUDA2"),
        (processes_communicate_through_comm, "momentum_gs/train/x.py", "import torch.distributed as dist"),
        (processes_communicate_through_comm, "momentum_gs/train/x.py", "from torch import distributed"),
        (processes_communicate_through_comm, "momentum_gs/train/x.py", "from torch.distributed import barrier"),
        (processes_communicate_through_comm, "momentum_gs/train/x.py", "import torch\ntorch.distributed.barrier()"),
        (devices_are_named_in_one_place, "momentum_gs/model/x.py", "device = 'cuda'"),
        (devices_are_named_in_one_place, "momentum_gs/model/x.py", "y = x.to('cuda:0')"),
        (devices_are_named_in_one_place, "momentum_gs/model/x.py", "y = x.cuda()"),
        (files_never_run_code, "momentum_gs/data/x.py", "import pickle"),
        (files_never_run_code, "momentum_gs/data/x.py", "from pickle import load"),
        (files_never_run_code, "momentum_gs/data/x.py", "y = eval('1')"),
        (files_never_run_code, "momentum_gs/data/x.py", "y = torch.load('f')"),
        (files_never_run_code, "momentum_gs/data/x.py", "y = torch.load('f', weights_only=False)"),
        (files_never_run_code, "momentum_gs/data/x.py", "y = np.load('f', allow_pickle=True)"),
        (errors_are_named, "momentum_gs/data/x.py", "try:\n    pass\nexcept:\n    pass"),
        (no_global_state, "momentum_gs/data/x.py", "def f():\n    global y\n    y = 1"),
        (annotations_are_real, "momentum_gs/data/x.py", "from __future__ import annotations"),
    ],
)
def test_every_rule_finds_what_it_forbids(rule: Rule, path: str, source: str) -> None:
    found = list(rule(path, ast.parse(source)))
    assert len(found) == 1
    assert 1 <= found[0][0] <= source.count("\n") + 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("momentum_gs/train/x.py", "from momentum_gs.core.comm import Comm\nfrom .step import step\nimport torch"),
        ("momentum_gs/cli/x.py", "from momentum_gs import __version__\nfrom momentum_gs.train.loop import Training"),
        ("momentum_gs/config/x.py", "from typing import Literal\ny: Literal['cpu', 'cuda'] = 'cpu'"),
        ("momentum_gs/core/comm.py", "import torch.distributed as dist"),
        ("momentum_gs/core/device.py", "y = torch.device('cuda', 0)"),
        ("momentum_gs/model/x.py", "model.eval()\ny = torch.load('f', weights_only=True)"),
        ("momentum_gs/model/x.py", "try:\n    pass\nexcept ValueError:\n    pass"),
        ("momentum_gs/model/init.py", "from simple_knn._C import distCUDA2"),
        ("submodules/simple-knn/simple_knn/x.py", "from . import ops\ny = x.device.type == 'cuda'"),
    ],
)
def test_no_rule_forbids_what_is_allowed(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [violation for rule in RULES for violation in rule(path, tree)] == []
