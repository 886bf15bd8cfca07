"""Names, comments, help texts and docs do not contain the words that docs/glossary.md lists as not used."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    r"photographs?\b": "image",
    r"pictur(es?|ed)\b": "image",
    r"(in|by) turns\b|\b(each|every|last|first|own|next) turn\b": "round",
    r"(coarse|initial|gaussians\.)[ .]?prior\b": "initialization",  # depth and normal priors keep their name
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
    "anchor_demon", "gaussians.prior", "blocks.confine",
}  # fmt: skip


def texts() -> Iterator[Path]:
    """All files that readers of the project see, except the glossary and this file, which list the words."""
    for pattern in ("*.md", "docs/*.md", "configs/**/*.yaml", "scripts/**/*.sh", "scripts/**/*.py",
                    "momentum_gs/**/*.py", "submodules/*/*.md", "submodules/**/*.py",
                    "submodules/*/csrc/**/*.[ch]*", "tests/**/*.py", "tests/**/*.md"):  # fmt: skip
        for path in sorted(ROOT.glob(pattern)):
            if not {"build", "glossary.md", Path(__file__).name} & set(path.relative_to(ROOT).parts):
                yield path


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a file; of a test, its names as words, its comments and its docstrings.

    Other strings in tests may be those of old files or of the official code.
    """
    if path.suffix != ".py" or "tests" not in path.relative_to(ROOT).parts:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    with path.open("rb") as file:
        statement_begins = True
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string.replace("_", " ")
            elif token.type == tokenize.COMMENT or (token.type == tokenize.STRING and statement_begins):
                yield from enumerate(token.string.splitlines(), token.start[0])
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                statement_begins = token.type in (
                    tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT
                )  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> tuple[list[str], str]:
    """For each line that is read, its file and number; and all lines as one text, without the allowed names."""
    places, found = [], []
    for path in texts():
        for number, line in lines_of(path):
            places.append(f"{path.relative_to(ROOT)}:{number}")
            found.append(line)
    text = "\n".join(found)
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return places, text


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_are_gone(pattern: str, lines: tuple[list[str], str]) -> None:
    word = re.compile(rf"(?<![A-Za-z]){pattern}" if not pattern.startswith("(?<") else pattern, re.IGNORECASE)
    places, text = lines
    found = [f"{places[text.count(chr(10), 0, match.start())]}: {match.group(0)!r}, expected {RETIRED[pattern]}"
             for match in word.finditer(text)]  # fmt: skip
    assert not found, f"{len(found)}:\n" + "\n".join(found[:60])


def test_the_files_are_found() -> None:
    """A wrong glob would make every word pass."""
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    assert {"README.md", "docs/method.md", "momentum_gs/cli/main.py", "configs/base.yaml"} <= names
    assert {"tests/tiny_run.py", "submodules/simple-knn/tests/test_simple_knn.py"} <= names


def test_names_comments_and_docstrings_of_tests_are_read() -> None:
    texts_here = [text for _, text in lines_of(Path(__file__))]
    assert "lines of" in texts_here and "# Names in old files and in other programs." in texts_here
    assert any("that docs/glossary.md lists" in text for text in texts_here)
    assert not any("anchor_demon" in text for text in texts_here), "other strings are not read"
