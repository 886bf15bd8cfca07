"""Names, comments, help texts and docs do not contain the words that docs/glossary.md lists as not used."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    r"photographs?\b": "image",
    r"pictur(es?|ed)\b": "image",
    r"(in|by) turns\b|\b(each|every|last|first|own|next) turn\b": "round",
    r"(?<!depth )(?<!normal )(?<!pose_)priors?\b(?! to\b)": "initialization",
    r"resting|at rest\b": "inactive, offloaded",
    r"(the|3DGS) family|family's": "3DGS codebases",
    r"(is|are|was|were|been|be|has|have) said\b": "printed, reported",
    r"judged": "eligible",
    r"(of one|one|its|same) face\b": "interface",
    r"the talk\b|talks?\b": "communication",
    r"own[ _]decoders?\b": "per-block decoder",
    r"(?<!_)verbs?\b": "command",
    r"the house\b|house_": "the code",
    r"demon\b": "denom",
    r"confin(e|es|ed|ing)\b": "offset clamping",
}
ALLOWED = {
    # Names in old files and in other programs.
    "anchor_demon", "read_all_pose_priors", "gaussians.prior", "blocks.confine",
}  # fmt: skip


def texts() -> Iterator[Path]:
    """All files that readers of the project see, except tests and the glossary."""
    for pattern in ("*.md", "docs/*.md", "configs/**/*.yaml", "scripts/**/*.sh", "scripts/**/*.py",
                    "momentum_gs/**/*.py", "submodules/*/*.md", "submodules/**/*.py",
                    "submodules/*/csrc/**/*.[ch]*"):  # fmt: skip
        for path in sorted(ROOT.glob(pattern)):
            if not {"build", "glossary.md", "tests"} & set(path.relative_to(ROOT).parts):
                yield path


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_are_gone(pattern: str) -> None:
    word = re.compile(rf"(?<![A-Za-z]){pattern}" if not pattern.startswith("(?<") else pattern, re.IGNORECASE)
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for allowed in ALLOWED:
                line = line.replace(allowed, "")
            if match := word.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group(0)!r}, expected {RETIRED[pattern]}")
    assert not found, f"{len(found)}:\n" + "\n".join(found[:60])


def test_the_files_are_found() -> None:
    """A wrong glob would make every word pass."""
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert {"README.md", "docs/method.md", "momentum_gs/cli/main.py", "configs/base.yaml"} <= names
