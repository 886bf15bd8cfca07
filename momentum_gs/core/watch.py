"""Ends all ranks together: signs of life, the first error of a run, and requests to stop.

When a rank fails, the others would wait in a collective until it times out. So each rank has threads that report
through the launcher's store that it is alive, and that end its process when another rank has failed or has given no
sign of life. The rank that failed prints its error; the others end silently.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import NoReturn, Protocol, runtime_checkable

from momentum_gs.core.errors import LostRank, UserError, complain

SILENCE_SECONDS = 60.0
"""A machine that swaps may stall for a while, but one that is silent for a minute does not come back."""

TICK_SECONDS = 0.5
# The rank with the error waits two ticks before it exits, so that the others learn of it before the launcher ends them.
_LINGER_SECONDS = 2 * TICK_SECONDS
# The others wait longer, so that the launcher sees the rank with the error exit first and reports that one.
_YIELD_SECONDS = 3 * TICK_SECONDS
# After a broken connection: time in which its cause may be announced, and in which a dead rank misses several beats.
_CAUSE_SECONDS = 6 * TICK_SECONDS
# The limit of silence after a request to stop: launchers send one when a rank has died, and kill after 30 s. It is not
# shorter, because a rank may be silent for seconds while it writes a checkpoint and its threads do not run.
_STOPPING_SILENCE_SECONDS = 20.0
# Requests within this time count as one: a scheduler signals every process, and the launcher does so again.
_SAME_REQUEST_SECONDS = 1.0
_DONE = "done"


class Stop:
    """Whether this process was asked to stop, by SIGTERM (schedulers) or SIGINT (Ctrl-C).

    A context manager for the main thread. The first request is only recorded; a second one ends the process at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """Signal of the first request; None before."""
        self._first = 0.0

    def __enter__(self) -> "Stop":
        # Python runs handlers in the main thread, which may be blocked in a collective that never returns. The C
        # handler writes to the pipe, so that any thread can learn of the request.
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._handlers = {s: signal.signal(s, self._on_signal) for s in self.SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for end in self._pipe:
            os.close(end)

    def __call__(self) -> bool:
        """True once a stop was requested; may be called from any thread inside the context."""
        with contextlib.suppress(BlockingIOError):  # Nothing has arrived.
            for number in os.read(self._pipe[0], 16):
                if number in self.SIGNALS:
                    self.signal = self.signal or signal.Signals(number)
        return self.signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._first:
            self._first = now
        elif now - self._first > _SAME_REQUEST_SECONDS:
            os._exit(128 + number)


@runtime_checkable
class Store(Protocol):
    """What the watch needs from the launcher's key-value store."""

    def set(self, key: str, value: str, /) -> None:
        """Writes a value."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Reads the values of several existing keys."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Writes ``desired`` if the value is ``expected``; returns the value after that."""


def lay_out(store: Store, world_size: int) -> None:
    """Creates the keys of a watch before it begins, so that reading them never waits."""
    for key in ("error", *map(_beat, range(world_size))):
        store.set(key, "")


class Watch:
    """One rank's side of the watch. A context manager around everything that the rank does.

    An exception that leaves the context is announced to the other ranks and printed once for all ranks: a
    ``UserError`` as one line (exit status 2), any other with its traceback (exit status 1). The process then ends
    immediately, without waiting for threads that communicate with other ranks. For a ``LostRank``, the error that
    caused it is printed instead, where some rank announces one.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, stop: Stop, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        """Prepares the watch; it begins on entering the context.

        Args:
            store: Used by this watch alone, with its keys created (``lay_out``).
            silence_seconds: Seconds without a sign of life after which a rank counts as lost.
        """
        self.doing = "starting"
        """What this rank is doing, for the message of the others if it is lost."""
        self._store, self._rank, self._world_size = store, rank, world_size
        self._stop, self._silence = stop, silence_seconds
        # Each rank watches one other, so the traffic grows with the number of ranks, not its square.
        self._next = (rank + 1) % world_size
        self._error = ""
        self._beats = 0
        self._still_beats = 0
        self._seen = ""
        self._over = threading.Event()
        # The store may stop answering when its machine is gone, so the thread that ends the process must not use it.
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._communication, self._guard)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LostRank):
            self._wait_for_cause(error)
        elif isinstance(error, UserError):
            self._fail(str(error), 2)
        elif isinstance(error, Exception):
            self._fail("".join(traceback.format_exception(error)), 1)
        self._over.set()
        for thread in self._threads:
            thread.join(_LINGER_SECONDS)
        with contextlib.suppress(RuntimeError):  # The store is gone with the launcher, since other ranks ended first.
            self._store.set(_beat(self._rank), _DONE)
            # With some launchers rank 0 hosts the store, so rank 0 waits until no other rank needs it.
            deadline = time.monotonic() + self._silence
            while self._rank == 0 and not self._stop() and time.monotonic() < deadline:
                if self._read("error")[0] or set(self._beats_of_all()) == {_DONE}:
                    break
                time.sleep(TICK_SECONDS / 10)

    def _communication(self) -> None:
        """Writes this rank's signs of life, and reads errors and the next rank's signs of life."""
        host = socket.gethostname()
        try:
            while not self._over.is_set():
                self._store.set(_beat(self._rank), f"{self._beats} on {host}, {self.doing}")
                error, beat = self._read("error", _beat(self._next))
                # Counted in this rank's own beats, so that time in which this process was frozen does not count.
                self._still_beats = self._still_beats + 1 if beat == self._seen and beat != _DONE else 0
                self._error, self._seen = error, beat
                self._beats += 1
                self._over.wait(TICK_SECONDS)
        except RuntimeError:
            return  # The store is gone; the guard notices that this thread has ended.

    def _guard(self) -> None:
        """Ends the process if the run has failed, whatever the main thread is waiting for.

        A collective cannot be interrupted, so the process exits without unwinding. Files are written atomically, so
        none is left incomplete.
        """
        beats = unanswered = 0
        while not self._over.wait(TICK_SECONDS):
            silence = min(self._silence, _STOPPING_SILENCE_SECONDS) if self._stop() else self._silence
            unanswered = unanswered + 1 if self._beats == beats else 0
            beats = self._beats
            if self._error and not self._error.startswith(f"{self._rank} "):
                self._yield()
            elif self._still_beats * TICK_SECONDS > silence:
                self._fail(f"{self._describe(self._next, self._seen)} has given no sign of life for {silence:g} s", 1)
            elif unanswered * TICK_SECONDS > silence or not self._threads[0].is_alive():
                self._leave_without_store()

    def _fail(self, message: str, status: int) -> NoReturn:
        """Announces and prints an error, unless another rank announced one before; ends the process."""
        first = f"{self._rank} {message}"
        with contextlib.suppress(RuntimeError):  # Without the store no other rank can have announced an error.
            first = self._store.compare_set("error", "", first).decode()
        if not first.startswith(f"{self._rank} "):
            self._yield()
        complain(message if self._rank == 0 else f"[rank {self._rank}] {message}")
        time.sleep(_LINGER_SECONDS)
        _end(status)

    def _wait_for_cause(self, error: LostRank) -> NoReturn:
        """Ends the process after a broken connection; prints an error unless another rank announces one."""
        try:
            before = self._beats_of_all()
            deadline = time.monotonic() + _CAUSE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(TICK_SECONDS)
                # After a request to stop, the launcher has seen the other rank end and reports it.
                if self._error or self._stop():
                    self._yield()
            after = self._beats_of_all()
        except RuntimeError:
            self._leave_without_store()
        same = zip(before, after, strict=True)
        lost = [rank for rank, (a, b) in enumerate(same) if a == b and b != _DONE and rank != self._rank]
        if lost:
            self._fail(f"{self._describe(lost[0], after[lost[0]])} is gone, killed or with its machine", 1)
        self._fail("".join(traceback.format_exception(error)), 1)

    def _yield(self) -> NoReturn:
        """Ends the process silently, after the rank that prints the error."""
        time.sleep(_YIELD_SECONDS)
        _end(1)

    def _leave_without_store(self) -> NoReturn:
        """Ends the process; one rank per machine prints a message, since the ranks can no longer agree on one."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            complain(f"[rank {self._rank}] rank 0 is gone, or the launcher on its machine")
        _end(1)

    def _describe(self, rank: int, beat: str) -> str:
        return f"rank {rank} of {self._world_size} ({beat.partition(' ')[2] or 'not heard of yet'})"

    def _beats_of_all(self) -> Sequence[str]:
        return self._read(*map(_beat, range(self._world_size)))

    def _read(self, *keys: str) -> Sequence[str]:
        return [value.decode() for value in self._store.multi_get(list(keys))]


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _end(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
