"""The files about installation agree: scripts, container images, environments, versions, the packages' folders."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="reads pyproject.toml")

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("submodules/*/setup.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]


def lock() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements-lock.txt").read_text().splitlines() if not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def required_by_setup() -> list[str]:
    """The list of requirements in setup.py, read from its text."""
    found = re.search(r"^REQUIRES = \[\n    TORCH,\n(.*?)^\]", (ROOT / "setup.py").read_text(), re.S | re.M)
    assert found
    return re.findall(r'"(.*?)"', found[1])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_images_are_made_by_the_same_script_as_environments(name: str) -> None:
    """Container images install with scripts/setup.sh alone, and the script knows the variables that they set."""
    text, script = (ROOT / "docker" / name).read_text(), (ROOT / "scripts" / "setup.sh").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("RUN") and "apt-get" not in line]
    assert line.endswith(" bash scripts/setup.sh")
    for variable in re.findall(r"(\w+)=", line):
        assert variable in script or variable in (ROOT / "submodules" / "build_rules.py").read_text()
    assert "pip install" not in text
    assert f"docker build -f docker/{name} " in text


def test_demo_installs_less_than_the_tests() -> None:
    assert "bash scripts/setup.sh\n" in (ROOT / "scripts" / "demo.sh").read_text()
    assert "bash scripts/setup.sh --dev\n" in (ROOT / "scripts" / "test.sh").read_text()
    plain, dev = re.findall(r"extras=([\w,]+)", (ROOT / "scripts" / "setup.sh").read_text())
    assert set(plain.split(",")) < set(dev.split(",")) <= set(EXTRAS)


def test_every_version_is_bounded_and_the_lock_is_within() -> None:
    """Upper bounds are above the versions that were tested, which are in the lock. Not in the lock are packages of the
    documentation, which has its own environment, and torch_scatter, which has no wheel for the torch of the lock."""
    locked, elsewhere = lock(), [Requirement(text).name for text in EXTRAS["docs"]] + ["torch_scatter"]
    for text in [*required_by_setup(), *(text for extra in EXTRAS.values() for text in extra)]:
        need = Requirement(text)
        operators = {specifier.operator for specifier in need.specifier}
        assert operators in ({"=="}, {">=", "<"}), text
        version = locked.get(need.name.lower().replace("_", "-"))
        assert version is not None or need.name in elsewhere, f"{need.name} is not in requirements-lock.txt"
        assert version is None or need.specifier.contains(version), f"{text}, but the lock has {version}"


def test_torch_has_one_range_everywhere() -> None:
    builds = [tomllib.loads((folder / "pyproject.toml").read_text())["build-system"]["requires"] for folder in PACKAGES]
    (torch,) = {
        text for requires in [PROJECT["build-system"]["requires"], *builds] for text in requires if "torch" in text
    }
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert torch.replace("torch", "pytorch-gpu") in conda
    script = (ROOT / "scripts" / "setup.sh").read_text()
    assert Requirement(torch).specifier.contains(re.search(r"^TORCH=(.*)", script, re.M)[1])
    assert f">=2.{re.search(r'^OLDEST_MINOR=([0-9]+)', script, re.M)[1]}," in torch


def test_the_conda_environment_installs_every_package_and_what_the_tests_need() -> None:
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {f"./{folder.relative_to(ROOT).as_posix()}" for folder in PACKAGES} < set(pip["pip"])
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip["pip"][-1])
    assert extras and {"dev", "plot"} <= set(extras[1].split(",")) <= set(EXTRAS)


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_each_package_stands_alone(folder: Path) -> None:
    """It has the licence, and a README whose links stay inside its folder."""
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    readme = (folder / "README.md").read_text()
    assert f"pip install --no-build-isolation ./submodules/{folder.name}" in readme
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme):
        assert (folder / link).is_file() and ".." not in link, link


def test_one_file_decides_whether_the_cuda_kernels_are_built() -> None:
    for setup in [ROOT / "setup.py", *(folder / "setup.py" for folder in PACKAGES)]:
        text = setup.read_text()
        assert "from build_rules import" in text
        assert "FORCE_CUDA" not in text and "torch.version.cuda" not in text
