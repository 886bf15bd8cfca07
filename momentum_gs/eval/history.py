"""The curves of a training run, from its ``events.jsonl``."""

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from momentum_gs.core.errors import UserError

Curve = dict[int, float]
"""Global step -> value. A resumed run repeats the steps behind its checkpoint; the later value counts."""


def _curves() -> defaultdict[Any, Curve]:
    return defaultdict(dict)


@dataclass(frozen=True)
class History:
    """What training reported. Keys of the curves: a loss term, or a block."""

    k: int | None
    """Blocks of a round; None where no round began."""
    losses: dict[str, Curve] = field(default_factory=_curves)
    """Unweighted, mean over the active blocks."""
    anchors: dict[int, Curve] = field(default_factory=_curves)
    psnr: dict[int, Curve] = field(default_factory=_curves)
    """dB, measured on training views, raw."""
    weight: dict[int, Curve] = field(default_factory=_curves)
    held_out: dict[int, Curve] = field(default_factory=_curves)
    """PSNR of the held-out views that a block owns, dB."""


def read_history(out: Path) -> History | None:
    """The history of the run in ``out``, None where it has none; a last line that is being written is left out.

    Raises:
        UserError: naming a line that is no event.
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
