"""Tables over runs. Scores of different protocols never share a column: they are refused, or get separate tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from momentum_gs.core.errors import UserError
from momentum_gs.eval.lpips_metric import NETS, metric_name
from momentum_gs.eval.record import covered_alike
from momentum_gs.partition.coverage import SEEN_BY

FITTED = {"PSNR_fit": "PSNR fit (right half)"}
COVERED = {"PSNR_covered": "PSNR covered", "covered_share": "covered %"}
"""Key in results.json -> heading, of the columns for scores that not all entries have."""
_N_TEXT = 2
"""Number of leading columns that hold text and are aligned left."""


@dataclass(frozen=True)
class Row:
    """One method of one run."""

    run: str
    method: str
    record: Mapping[str, Any]
    """Its entry in results.json."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How the row was scored."""
        protocol: dict[str, Any] = self.record["protocol"]
        return protocol


def compare(rows: Sequence[Row], separate: bool = False, markdown: bool = False) -> str:
    """One table over rows with the same protocol; with ``separate``, a table for each protocol.

    Raises:
        UserError: if protocols differ, unless ``separate``; it names two rows and their differences.
    """
    groups: list[list[Row]] = []
    for row in rows:
        home = next((group for group in groups if not any(differences(other, row) for other in group)), None)
        if home is None:
            groups.append([row])
        else:
            home.append(row)
    if len(groups) > 1 and not separate:
        other = groups[1][0]
        one = next(row for row in groups[0] if differences(row, other))
        raise UserError(
            f"eval: {one.run} {one.method} and {other.run} {other.method} do not belong in one column: "
            f"{', '.join(differences(one, other))}; score them alike, or make separate tables with --separate"
        )
    return "\n\n".join(format_table(group, markdown) for group in groups)


def differences(a: Row, b: Row) -> list[str]:
    """Differences between the protocols of two rows, for messages; empty if their scores are comparable.

    If only one of them has LPIPS, that is no difference: the other's column is empty.
    """
    found = []
    for key, name in (
        ("split", "split"),
        ("resolution", "resolution"),
        ("view_list_sha256", "list of views"),
        ("ground_truth_sha256", "ground truth"),
        ("masks_sha256", "masks"),
    ):
        one, other = a.protocol.get(key), b.protocol.get(key)
        if one != other:
            found.append(f"{name} {_short(one)} against {_short(other)}")
    one, other = a.protocol.get("lpips"), b.protocol.get("lpips")
    if one and other:
        found += [
            f"LPIPS {key} {_short(one.get(key))} against {_short(other.get(key))}"
            for key in ("net", "version", "input_range", "trunk_sha256")
            if one.get(key) != other.get(key)
        ]
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " + ".join(f"{count} of {size}" for size, count in sorted(value.items()))
    if value is None:
        return "none"
    return value[:8] if len(value) == 64 else value  # a hash


def format_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """The table as aligned plain text or as markdown, with notes below it. Missing scores are shown as '-'.

    Args:
        rows: At least one, all with the same protocol.
        markdown: Markdown instead of plain text.
    """
    nets = [name for name in map(metric_name, NETS) if any(name in row.record for row in rows)] or ["LPIPS"]
    metrics = [("PSNR", 2), ("SSIM", 4), *((net, 4) for net in nets)]
    columns = [(name + suffix, digits) for suffix in ("", "_cc") for name, digits in metrics]
    kinds = [kind for kind in ("anchors", "gaussians") if any(row.protocol.get(kind) for row in rows)]
    worst = ["worst block"] if len(_cells(rows)) <= 1 else []
    covered = COVERED if covered_alike(row.protocol for row in rows) else {}
    extra = {key: head for key, head in (FITTED | covered).items() if any(key in row.record for row in rows)}
    heads = [*(name.replace("_", " ") for name, _ in columns), *extra.values()]
    cells = [["run", "method", *heads, *worst, "views", *kinds]]
    for row in rows:
        scores = [_number(row.record.get(metric), digits) for metric, digits in columns]
        scores += [percent(row.record.get(key)) if key == "covered_share" else _number(row.record.get(key), 2)
                   for key in extra]  # fmt: skip
        scores += [_number(row.record.get("worst_block", {}).get("PSNR"), 2) for _ in worst]
        counts = [str(row.protocol["views"]), *(_count(row.protocol.get(kind)) for kind in kinds)]
        cells.append([row.run, row.method, *scores, *counts])
    table = _markdown(cells) if markdown else _plain(cells)
    return "\n".join([table, "", *_notes(rows)])


def _cells(rows: Sequence[Row]) -> set[str | None]:
    """Hashes of the cells that the rows' scores by block use. Worst blocks are comparable only if there is one hash:
    the lowest score of many cells is lower than that of a few."""
    return {row.protocol.get("cells_sha256") for row in rows if row.record.get("worst_block")}


def _notes(rows: Sequence[Row]) -> list[str]:
    protocol = rows[0].protocol
    lpips = next((row.protocol["lpips"] for row in rows if row.protocol["lpips"]), None)
    return [
        "raw left, cc: after colour correction to the ground truth. "
        + (f"LPIPS: network {lpips['net']}, fed [0,1]." if lpips else "LPIPS was left out."),
        f"{protocol['split']} views: {_short(protocol['resolution'])}; list {_short(protocol['view_list_sha256'])}, "
        f"ground truth {_short(protocol['ground_truth_sha256'])}",
        *(["PSNR fit: an affine colour correction is fitted on the left half of each view, the right half is scored."]
          if any("PSNR_fit" in row.record for row in rows) else []),
        *_covered_notes(rows),
        *(["worst block left out: the rows use different cells; render them with the same --cells"]
          if len(_cells(rows)) > 1 else []),
    ]  # fmt: skip


def _covered_notes(rows: Sequence[Row]) -> list[str]:
    if not any(row.protocol.get("covered_sha256") for row in rows):
        return []
    if not covered_alike(row.protocol for row in rows):
        return ["PSNR covered left out: the rows use different maps; render them with --covered-by the same run"]
    return [
        f"PSNR covered: raw, over pixels whose surface at least {SEEN_BY} training views see; covered %: their share."
    ]


def percent(share: float | None) -> str:
    """A share in [0, 1] in per cent; '-' for None."""
    return _number(None if share is None else 100 * share, 1)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


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
