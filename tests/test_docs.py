"""Files, pages and messages that the documentation names exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("submodules/*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_pages_that_code_names_are_there() -> None:
    sources = [*ROOT.glob("momentum_gs/**/*.py"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("scripts/**/*.*")]
    named = {name for file in sources if file.suffix in (".py", ".sh", ".yaml", ".sbatch")
             for name in re.findall(r"docs/\w+\.md", file.read_text())}  # fmt: skip
    assert named and [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def texts() -> Iterator[str]:
    """The literal text of the program, f-strings in their pieces."""
    for file in [*ROOT.glob("momentum_gs/**/*.py"), *ROOT.glob("submodules/*/setup.py")]:
        yield from (
            node.value
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
    yield (ROOT / "scripts" / "setup.sh").read_text()


def test_messages_in_troubleshooting_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = set(re.findall(r"^### `(.+)`$", page, re.MULTILINE)) - {"Killed", "Illegal instruction"}  # The system's.
    program = list(texts())
    assert messages and [message for message in messages if not any(message in text for text in program)] == []
