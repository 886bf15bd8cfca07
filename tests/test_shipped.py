"""Shipped settings and sweeps by name, the user's own by path, and errors for files that do not exist."""

from pathlib import Path

import pytest

from momentum_gs.config.load import load_config
from momentum_gs.config.shipped import find_settings, find_sweep, instead_of, shipped_folder
from momentum_gs.core.errors import UserError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("demo", "demo.yaml"),
        ("own", "own.yaml"),
        ("rubble", "scenes/rubble.yaml"),
        ("scenes/rubble", "scenes/rubble.yaml"),
        ("modes/full", "modes/full.yaml"),
        ("full", "modes/full.yaml"),
        ("caliterra", "caliterra.yaml"),  # ablations/caliterra.yaml has to be named in full.
        ("ablations/caliterra", "ablations/caliterra.yaml"),
    ],
)
def test_a_name_means_a_shipped_file(name: str, file: str) -> None:
    assert find_settings(name) == CONFIGS / file


@pytest.mark.parametrize("name", ["table7", "sweeps/table7"])
def test_sweeps_have_names_of_their_own(name: str) -> None:
    assert find_sweep(name) == CONFIGS / "sweeps" / "table7.yaml"
    with pytest.raises(UserError, match="no shipped settings file is called"):
        find_settings(name)


@pytest.mark.parametrize("path", ["mine.yaml", "a/mine.yml", "/dev/stdin", "./mine", "../mine", "~/mine", "demo.yaml"])
def test_a_path_is_the_users_own_file(path: str) -> None:
    assert find_settings(path) == find_sweep(path) == Path(path)


def test_the_working_folder_changes_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("steps: 5")
    (tmp_path / "modes").mkdir()
    assert find_settings("demo") == shipped_folder() / "demo.yaml"
    assert find_settings("modes/full") == shipped_folder() / "modes" / "full.yaml"
    assert load_config("./demo").steps == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rubbel",
            "no shipped settings file is called 'rubbel'; did you mean scenes/rubble? Give your own file with its",
        ),
        ("gaussian", "did you mean modes/gaussians?"),
        ("modes/ful", "did you mean modes/full or "),
        ("xyzzy", "expected one of ablations/caliterra, "),
    ],
)
def test_similar_names_are_suggested(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_names_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"cannot read configs/rubble\.yaml: .*; the shipped one is called scenes/rubble"
    ):
        load_config("configs/rubble.yaml")
    assert instead_of("configs/sweeps/table7.yaml").endswith("called sweeps/table7")
    assert instead_of("mine.yaml") == "check the path"


def test_a_file_of_ones_own_may_start_from_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: scenes/rubble\nseed: 5\n")
    found, shipped = load_config(tmp_path / "mine.yaml"), load_config("rubble")
    assert (found.seed, found.growth, found.partition) == (5, shipped.growth, shipped.partition)
