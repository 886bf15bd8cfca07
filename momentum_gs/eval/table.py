"""One table over runs, with a visible mark on rows that were not scored alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COLUMNS = (
    ("PSNR", "PSNR", 2),
    ("SSIM", "SSIM", 4),
    ("LPIPS", "LPIPS", 4),
    ("PSNR cc", "PSNR_cc", 2),
    ("SSIM cc", "SSIM_cc", 4),
    ("LPIPS cc", "LPIPS_cc", 4),
)
"""Heading, metric, digits."""
_N_TEXT = 2
"""Leading columns that are words, aligned left."""


@dataclass(frozen=True)
class Row:
    """One method of one run."""

    run: str
    method: str
    mean: Mapping[str, float | None]
    protocol: dict[str, Any]


def format_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The table as aligned plain text or as markdown, footnotes below. Metrics that were left out show as '-'.

    Rows scored on different views, sizes or ground truth get different marks ([a], [b], ...), explained in a footnote.
    """
    keys = list(dict.fromkeys(_protocol_key(row) for row in rows))
    marks = {key: f" [{_letter(i)}]" if len(keys) > 1 else "" for i, key in enumerate(keys)}
    cells = [["run", "method", *(heading for heading, _, _ in _COLUMNS), "views", "anchors"]]
    for row in rows:
        scores = [_number(row.mean.get(metric), digits) for _, metric, digits in _COLUMNS]
        anchors = row.protocol.get("anchors")
        views = f"{row.protocol['views']}{marks[_protocol_key(row)]}"
        cells.append([row.run, row.method, *scores, views, "-" if anchors is None else f"{anchors:,}"])
    table = _markdown(cells) if markdown else _plain(cells)
    return "\n".join([table, "", *_notes(rows, marks)])


def _protocol_key(row: Row) -> tuple[Any, ...]:
    protocol = row.protocol
    return (
        protocol["split"],
        protocol["view_list_sha256"],
        tuple(sorted(protocol["resolution"].items())),
        protocol["ground_truth_sha256"],
    )


def _notes(rows: Sequence[Row], marks: dict[tuple[Any, ...], str]) -> list[str]:
    trunks = {row.protocol["lpips"]["net"] if row.protocol["lpips"] else None for row in rows}
    named = ", ".join(sorted(trunk for trunk in trunks if trunk))
    notes = [
        "raw left, cc: after colour correction to the ground truth. "
        + (f"LPIPS: network {named}, fed [0,1]." if named else "LPIPS was left out.")
    ]
    for (split, names, sizes, truth), mark in marks.items():
        resolution = " + ".join(f"{count} of {size}" for size, count in sizes)
        notes.append(f"{mark.strip()} {split} views: {resolution}; list {names[:8]}, ground truth {truth[:8]}".strip())
    if len(marks) > 1:
        notes.append(
            "Rows with different marks were scored on different views, sizes or ground truth: do not rank them."
        )
    return notes


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else str(index + 1)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _plain(cells: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if i < _N_TEXT else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _markdown(cells: list[list[str]]) -> str:
    rule = ["---" if i < _N_TEXT else "---:" for i in range(len(cells[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])
