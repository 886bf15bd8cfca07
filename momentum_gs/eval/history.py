"""The curves of a training run, from its ``events.jsonl``."""

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from momentum_gs.core.errors import UserError

Curve = dict[int, float]
"""Global step -> value. A resumed run repeats the steps after its checkpoint; the later value is kept."""


def _curves() -> defaultdict[Any, Curve]:
    return defaultdict(dict)


@dataclass(frozen=True)
class History:
    """The curves of a training run, by loss term or by block."""

    k: int | None
    """Number of blocks of the last round; None if no round has begun."""
    losses: dict[str, Curve] = field(default_factory=_curves)
    """Mean over the active blocks, without the blocks' weights."""
    anchors: dict[int, Curve] = field(default_factory=_curves)
    psnr: dict[int, Curve] = field(default_factory=_curves)
    """dB, measured on training views, raw."""
    weight: dict[int, Curve] = field(default_factory=_curves)
    held_out: dict[int, Curve] = field(default_factory=_curves)
    """PSNR of the held-out views that a block owns, dB."""


def read_history(out: Path) -> History | None:
    """The history of the run in ``out``; None without events.jsonl. An incomplete last line is ignored.

    Raises:
        UserError: naming a line that is not an event.
    """
    path = out / "events.jsonl"
    if not path.exists():
        return None
    history = History(k=None)
    k = None
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                event = json.loads(line)
                if event["event"] == "RoundStarted":
                    k = len(event["blocks"])
                _take(history, event)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}: line {number} is no event of training ({error}); remove that line") from error
    return replace(history, k=k)


def _take(history: History, event: dict[str, Any]) -> None:
    step = event["step"]
    match event["event"]:
        case "StepDone":
            losses, anchors = event["losses"], event["anchors"]
            for term in next(iter(losses.values())):
                history.losses[term][step] = sum(terms[term] for terms in losses.values()) / len(losses)
            for block, count in anchors.items():
                history.anchors[int(block)][step] = float(count)
        case "BlocksMeasured":
            for block in event["weight"]:
                history.weight[int(block)][step] = event["weight"][block]
            for block in event["psnr"]:
                history.psnr[int(block)][step] = event["psnr"][block]
        case "HeldOutScored":
            history.held_out[event["block"]][step] = event["psnr"]
