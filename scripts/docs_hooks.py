"""Hook of mkdocs.yml: links from a page to a file of the repository, such as ../configs/base.yaml.

On a code host they lead to the file. The site has no such page, so there they become the link's text and the file's
path. A file that is not there is a warning, which fails the strict build.
"""

import logging
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)[^)]*\)")
log = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """The page's text without links that lead out of docs/."""

    def plain(link: re.Match[str]) -> str:
        text, path = link.groups()
        if not (DOCS.parent / path).exists():
            log.warning("%s links to %s, which is not there", page.file.src_path, path)
        return text if text == f"`{path}`" else f"{text} (`{path}`)"

    return OUTSIDE.sub(plain, markdown)
