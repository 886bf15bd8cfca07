"""``splat-transform``, PlayCanvas's converter between formats of Gaussians, as an external program.

It is looked for and run, never downloaded.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing

INSTALL = "npm install -g @playcanvas/splat-transform"
_NAME = "splat-transform"
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def find_converter() -> list[str] | None:
    """The words that start the program: from PATH, or through npx from a package that is installed here; None if there
    is none."""
    found = shutil.which(_NAME)
    if found is not None:
        return [found]
    npx = shutil.which("npx")
    if npx is None:
        return None
    words = [npx, "--no-install", _NAME]
    return words if subprocess.run([*words, "--version"], capture_output=True, check=False).returncode == 0 else None


def converter_for(named: Path) -> list[str]:
    """``find_converter``; raises UserError if there is none, naming the file that needs it."""
    words = find_converter()
    if words is None:
        raise UserError(
            f"{named}: the program {_NAME} is not on PATH, expected it for this format; {INSTALL}, or choose "
            "another format"
        )
    return words


def convert(source: Path, target: Path, named: Path) -> None:
    """Converts a file of Gaussians to the format of ``target``'s suffix, atomically.

    Args:
        named: The one of both files that the user has named, for messages.

    Raises:
        UserError: there is no converter, or it fails.
    """
    words = converter_for(named)
    with replacing(target) as temporary, tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert.") as folder:
        made = Path(folder) / target.name  # The format is chosen by the name, which a temporary name would hide.
        device = device_option(words) if target.name.lower().endswith(".sog") else []
        command = [*words, "--quiet", "--overwrite", *device, str(source.absolute()), str(made.absolute())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not made.is_file():
            raise UserError(
                f"{named}: {_NAME} failed ({_reason(done)}), expected it to write {target.name}; check this file, and "
                f"that '{' '.join(words)} --version' works"
            )
        made.replace(temporary)


def device_option(words: list[str]) -> list[str]:
    """The option for the CPU where the program finds no GPU: its palettes use one, and it would end with an error."""
    done = subprocess.run([*words, "--list-gpus"], capture_output=True, text=True, check=False)
    return ["--gpu", "cpu"] if done.returncode or "No GPU adapters" in done.stdout + done.stderr else []


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first line of the program's complaint."""
    lines = [_COLOURS.sub("", line).strip(" ✗·▸!") for line in f"{done.stderr}\n{done.stdout}".splitlines()]
    said = [line for line in lines if line and not line.startswith(("Warning", "at "))]
    errors = [line for line in said if "rror" in line]
    return (errors or said or [f"exit status {done.returncode}"])[0][:300]
