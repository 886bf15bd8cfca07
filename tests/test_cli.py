"""The command line: help, dispatch, flags and overrides, and how errors are printed."""

import argparse
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from momentum_gs.cli import main as cli
from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.config.load import dump_config, load_config
from momentum_gs.config.run import load_run_config, out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError

ROOT = Path(__file__).parents[1]
Command = Callable[[Callable[[argparse.Namespace], int | None]], None]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Command:
    """``probe(run)`` adds a command 'probe' that calls ``run``."""

    def add(run: Callable[[argparse.Namespace], int | None]) -> None:
        module = types.ModuleType("momentum_gs.cli.probe")
        vars(module).update(DESCRIPTION="probe", add_arguments=add_run_arguments, run=run)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "probe", "a command of the tests")

    return add


def parse(*argv: str, scene_first: bool = False) -> Config:
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, scene_first=scene_first)
    return resolve_config(parser.parse_intermixed_args(argv))


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    """Python with this package, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"momentum_gs.cli.{cli.MODULES.get(command, command)}")
    assert cli.COMMANDS[command] == module.HELP  # The table repeats it so that --help need not import the commands.
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    assert f"usage: momentum-gs {command}" in help_text
    assert module.DESCRIPTION.split()[0] in help_text


def test_help_lists_the_commands_and_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from momentum_gs.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert [command for command in cli.COMMANDS if f"  {command} " not in done.stdout] == []


def test_every_command_is_in_one_group() -> None:
    assert sorted(name for names in cli.GROUPS.values() for name in names) == sorted(cli.COMMANDS)


def test_without_a_command_all_are_listed_by_purpose() -> None:
    done = python("-m", "momentum_gs")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [purpose for purpose in cli.GROUPS if f"{purpose}:" not in lines] == []
    assert [name for name, text in cli.COMMANDS.items() if f"  {name:<11}{text}" not in lines] == []
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("argv", [["trian"], [], ["--nonsense"]])
def test_an_unknown_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_for_the_user_is_one_line_without_a_traceback() -> None:
    done = python("-m", "momentum_gs", "train", "growth.intervall=5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "momentum-gs: config: command line: unknown setting 'growth.intervall'; did you mean 'growth.interval'?\n"
    )


def test_an_interruption_is_status_130(probe: Command, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    probe(interrupted)
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "momentum-gs: interrupted\n"


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_status_is_what_the_command_returns(probe: Command, returned: int | None, status: int) -> None:
    probe(lambda args: returned)
    assert cli.main(["probe"]) == status


def test_an_error_of_the_program_keeps_its_traceback(probe: Command) -> None:
    def broken(args: argparse.Namespace) -> None:
        raise ZeroDivisionError

    probe(broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_flags_are_settings() -> None:
    config = parse("-s", "/scene", "-m", "/out", "-r", "4", "-i", "images_4", "-w")
    assert config == load_config(None, [
        "scene.path=/scene", "out=/out", "scene.resolution=4", "scene.images=images_4", "scene.white_background=true",
    ])  # fmt: skip
    assert parse("--source_path", "/scene", "--resolution", "-1").scene.resolution == -1
    assert parse() == Config()


def test_flags_beat_the_file_and_overrides_beat_flags(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("scene: {resolution: 2, images: of_file, test_every: 3, white_background: true}")
    scene = parse("-c", str(file), "-r", "4", "-i", "of_flag", "scene.images=of_override").scene
    assert (scene.resolution, scene.images, scene.test_every) == (4, "of_override", 3)
    assert scene.white_background, "a flag that was not given must not undo the file"


def test_overrides_may_stand_anywhere() -> None:
    config = parse("seed=1", "-r", "2", "steps=5", "-m", "/out", "stage=coarse")
    assert (config.seed, config.steps, config.stage, config.scene.resolution, config.out) == (1, 5, "coarse", 2, "/out")


def test_the_scene_may_be_the_first_word() -> None:
    config = parse("/scene", "-m", "/out", "partition.blocks=4", scene_first=True)
    assert (config.scene.path, config.partition.blocks) == ("/scene", 4)


@pytest.mark.parametrize("name", ["null", "1e-4", " a: b # c", "it's \"q\"", "[x", "päth"])
def test_a_path_keeps_its_characters(name: str) -> None:
    assert parse("-s", f"/{name}").scene.path == f"/{name}"
    assert parse("-i", name).scene.images == name


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "list.txt").touch()
    config = parse("-s", "scene", "-m", "~/out", "partition.coarse=c", "partition.file=p", "scene.test_list=list.txt")
    assert config.scene.path == str(tmp_path / "scene")
    assert config.out == "/home/me/out"
    assert (config.partition.coarse, config.partition.file) == (str(tmp_path / "c"), str(tmp_path / "p"))
    assert config.scene.test_list == str(tmp_path / "list.txt")
    # A list that is not here is looked for in the scene, so its name stays as it is.
    assert parse("scene.test_list=in_scene.txt").scene.test_list == "in_scene.txt"


def test_a_run_is_read_back_where_it_was_moved(tmp_path: Path) -> None:
    config = load_config(None, ["out=/elsewhere", "seed=7"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    found = load_run_config(tmp_path)
    assert (found.out, found.seed) == (str(tmp_path), 7)
    assert out_folder(found) == tmp_path
    with pytest.raises(UserError, match=r"none.config\.yaml is missing"):
        load_run_config(tmp_path / "none")
    with pytest.raises(UserError, match="-m OUT"):
        out_folder(Config())
