"""Events of training, and the observers that receive them; training does not depend on what observers do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.splats import Harmonics, Model


@dataclass(frozen=True)
class RoundStarted:
    """A round of the schedule begins, or continues after a resume."""

    step: int
    """Global steps done."""
    blocks: tuple[int, ...]
    """Active blocks of all ranks."""
    decoder_live: bool
    """False: the decoder is frozen in this round."""


@dataclass(frozen=True)
class StepDone:
    """A step ended. Sent for every step; losses and anchor counts of all ranks' blocks only every ``log.every``."""

    step: int
    """Global steps done."""
    total: int
    """Global steps of the whole run."""
    seconds: float
    """Training time since this process started, without the time spent on scoring held-out views."""
    losses: dict[int, dict[str, float]] | None = None
    """Block -> loss term -> value, times the term's weight, not times the block's."""
    anchors: dict[int, int] | None = None
    """Block -> number of anchors (or splats)."""
    pixels: float = 0.0
    """Pixels that counted in a loss since this process began, over the blocks of this rank."""


@dataclass(frozen=True)
class BlocksMeasured:
    """Smoothed scores of the blocks on their training views, and the loss weights that follow from them (eq. 7)."""

    step: int
    psnr: dict[int, float]
    """Block -> dB; every block measured so far."""
    ssim: dict[int, float]
    weight: dict[int, float]
    """Block -> weight of its loss."""


@dataclass(frozen=True)
class HeldOutScored:
    """A block was scored on the held-out views whose cameras stand in its cell."""

    step: int
    block: int
    views: int
    """Number of these views."""
    psnr: float
    """Mean, dB."""
    ssim: float
    seconds: float
    """Training time, as in ``StepDone``."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint or the model was written."""

    step: int
    path: str
    """Its folder."""


@dataclass(frozen=True)
class RoundEnded:
    """A round is over and its blocks are inactive."""

    step: int
    waited: float
    """Seconds that this rank has waited for blocks since this process started."""
    seconds: float
    """Training time, as in ``StepDone``."""


@dataclass(frozen=True)
class GrowthCapped:
    """Growth of a block was cut short by the cap on its anchors or splats (``anchors.max_per_block``, ...)."""

    step: int
    block: int
    anchors: int
    """Number of anchors (or splats) after this growth."""
    refused: int
    """Number that would have been added without the cap."""


Event = RoundStarted | StepDone | BlocksMeasured | HeldOutScored | Saved | RoundEnded | GrowthCapped


@dataclass(frozen=True)
class TrainingState:
    """The model between two steps. Training goes on with the same tensors, so an observer copies what it keeps."""

    step: int
    """Global steps done."""
    active: Mapping[int, tuple[Model, GaussianDecoder | Harmonics]]
    """Block -> its model and what decodes it; the active blocks of this rank."""
    inactive: Callable[[int], Model | None]
    """The model of an inactive block; None if it is not in this rank's memory. Valid until the next step."""
    n: int
    """Number of blocks."""
    shared_decoder: bool
    """Whether one decoder decodes all blocks."""


@runtime_checkable
class Observer(Protocol):
    """Receives the events of training."""

    def on_event(self, event: Event) -> None:
        """Handles one event; must ignore kinds that it does not know."""

    def close(self) -> None:
        """Called once training is over, also after an error."""


@runtime_checkable
class StateObserver(Observer, Protocol):
    """An observer that wants to see the model from time to time."""

    def wants_state(self) -> bool:
        """Asked after every step, so it must take next to no time."""

    def on_state(self, state: TrainingState) -> None:
        """Given the state of the step just done, if it is wanted."""


class Observers:
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)
        # Found once: isinstance of a protocol takes as long as some operators of a step.
        self._state_observers = tuple(observer for observer in observers if isinstance(observer, StateObserver))

    def on_event(self, event: Event) -> None:
        """Passes the event on to each."""
        for observer in self._observers:
            observer.on_event(event)

    def offer_state(self, state: Callable[[], TrainingState]) -> None:
        """Gives the state, which is put together only if it is wanted, to those that want it."""
        for observer in self._state_observers:
            if observer.wants_state():
                observer.on_state(state())

    def close(self) -> None:
        """Closes each."""
        for observer in self._observers:
            observer.close()
