"""The HTML elements of a report. Text is escaped here and nowhere else; the type ``Html`` marks what is escaped."""

import shlex
from collections.abc import Sequence
from html import escape
from typing import NewType
from urllib.parse import quote

Html = NewType("Html", str)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8886; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, table.words td { text-align: left; }
tr.own { font-weight: 600; }
.missing { border-left: 3px solid #c80; padding-left: .7rem; }
.note { opacity: .75; font-size: .9rem; }
svg { width: 100%; max-width: 48rem; height: auto; display: block; }
svg text { fill: currentColor; font-size: 12px; }
svg .grid { stroke: currentColor; opacity: .15; fill: none; }
svg .dot { fill: #fff; stroke: #000; stroke-width: .8; }
svg .label { fill: #fff; stroke: #000; stroke-width: 2.5px; paint-order: stroke; font-size: 13px; }
.views { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem; margin-bottom: 1rem; }
.views img { width: 100%; display: block; }
code { overflow-wrap: anywhere; }
"""


def page(title: str, sections: Sequence[Html]) -> Html:
    """A whole document; the content security policy in its head forbids it to load anything."""
    return Html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
        """style-src 'unsafe-inline'">"""
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    )


def section(title: str, *parts: Html) -> Html:
    """A section with its heading."""
    return Html(f"<section><h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n")


def heading(text: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{escape(text)}</h3>\n")


def text(words: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{escape(words)}</p>\n")


def note(words: str) -> Html:
    """A paragraph in small print."""
    return Html(f'<p class="note">{escape(words)}</p>\n')


def link(words: str, path: str) -> Html:
    """A paragraph that leads to a file; ``path`` is relative to the document, with slashes."""
    return Html(f'<p><a href="{escape(quote(path))}">{escape(words)}</a>: <code>{escape(path)}</code></p>\n')


def missing(what: str, *command: str) -> Html:
    """A paragraph that says what is missing, followed by the words of the command that makes it."""
    how = f" <code>{escape(shlex.join(command))}</code>" if command else ""
    return Html(f'<p class="missing">{escape(what)}{how}</p>\n')


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, own: int = 0, words: bool = False) -> Html:
    """A table.

    Args:
        head: Cells of the heading; may be empty.
        rows: Cells of the rows.
        own: Number of rows at the top that are highlighted.
        words: Align all columns left, not only the first.
    """
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    for i, row in enumerate(rows):
        kind = ' class="own"' if i < own else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return Html(f"<table{' class=words' if words else ''}>{''.join(lines)}</table>\n")


def image(uri: str, about: str) -> Html:
    """An embedded image.

    Args:
        uri: A data URI.
        about: The alternative text.
    """
    return Html(f'<img src="{escape(uri)}" alt="{escape(about)}">')


def beside(images: Sequence[Html]) -> Html:
    """Images in rows of three."""
    return Html(f'<div class="views">{"".join(images)}</div>\n')


def drawing(svg: str) -> Html:
    """An SVG made by ``svg.py``, which escapes its text itself."""
    return Html(svg + "\n")
