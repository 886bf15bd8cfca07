"""What training tells the world. Observers decide what to do with it; training never asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class RoundStarted:
    """A round of the schedule begins."""

    step: int
    blocks: tuple[int, ...]
    decoder_live: bool


@dataclass(frozen=True)
class StepDone:
    """A step ended. Sent for every step; the numbers of all ranks' blocks come along every ``log.every`` steps."""

    step: int
    """Global steps done."""
    total: int
    seconds: float
    """Training time since the start of this run, scoring of held-out views not counted."""
    losses: dict[int, dict[str, float]] | None = None
    """Block -> term -> value, unweighted."""
    anchors: dict[int, int] | None = None
    """Block -> number of anchors."""


@dataclass(frozen=True)
class BlocksMeasured:
    """Scores on training views, and the weights that follow from them."""

    step: int
    psnr: dict[int, float]
    ssim: dict[int, float]
    weight: dict[int, float]


@dataclass(frozen=True)
class HeldOutScored:
    """Held-out views that a block owns, rendered by that block in training."""

    step: int
    block: int
    views: int
    psnr: float
    ssim: float
    seconds: float


@dataclass(frozen=True)
class Saved:
    """Something was written."""

    step: int
    path: str


@dataclass(frozen=True)
class RoundEnded:
    """A round is over and its blocks rest."""

    step: int
    waited: float
    """Seconds that this rank has waited for blocks since the start of the run."""
    seconds: float
    """Training time since the start of this run."""


@dataclass(frozen=True)
class GrowthCapped:
    """A block wanted more anchors than it may have (``anchors.max_per_block``)."""

    step: int
    block: int
    anchors: int
    refused: int
    """Anchors that did not grow."""


Event = RoundStarted | StepDone | BlocksMeasured | HeldOutScored | Saved | RoundEnded | GrowthCapped


@runtime_checkable
class Observer(Protocol):
    """Anything that wants to hear of training."""

    def on_event(self, event: Event) -> None:
        """Takes one event; must not raise for lack of interest."""

    def close(self) -> None:
        """Training is over, well or badly."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def on_event(self, event: Event) -> None:
        """Passes the event on to each."""
        for observer in self._observers:
            observer.on_event(event)

    def close(self) -> None:
        """Closes each."""
        for observer in self._observers:
            observer.close()
