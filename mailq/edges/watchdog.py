"""The watchdog of an event loop: it measures by how much the loop is late, and names the code that held it.

The loop ticks ten times a second, and each tick tells its lateness. A thread looks at the ticks; when one is overdue it
notes where the threads of the process are just then. The next tick tells it, with the whole length. A process that was
stopped, or got no processor, held nothing up by its own code: then the thread came late as well, and the process used
no processor time meanwhile. Messages cost nothing here.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Protocol

TICK = 0.1
"""Seconds between two ticks of the loop."""

LONG = 0.2
"""Seconds of lateness from which the code is named."""

BUSY = 0.1
"""Share of its lateness for which a process must have used a processor, to count as busy: others may use it more."""

_PACKAGE = f"{Path(__file__).parents[1]}/"


class Lateness(Protocol):
    """Is told what the watchdog finds, in the loop."""

    def lagged(self, seconds: float) -> None:
        """A round of the loop was late."""

    def held(self, seconds: float, place: str) -> None:
        """Code held the loop for long; `place` is file, line and function."""

    def stood_still(self, seconds: float) -> None:
        """The process was stopped, or had no processor."""


class LoopWatchdog:
    """Looks at the running loop; made, started and stopped in its thread."""

    def __init__(self, lateness: Lateness) -> None:
        self._lateness = lateness
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._used = self._late = 0.0
        self._looked = monotonic()
        self._place: str | None = None

    def start(self) -> None:
        """Begin to look."""
        self._next()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join()

    def _next(self) -> None:
        """Plan the next tick, and forget what was seen before."""
        self._place, self._late = None, 0.0
        self._used = process_time()
        self._due = monotonic() + TICK
        self._timer = self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        """Tell how late the loop is, and what held it."""
        now = monotonic()
        lag = max(now - self._due, 0.0)
        late = max(self._late, now - self._looked - TICK)  # the thread may not have come to itself yet
        if lag < LONG:
            self._lateness.lagged(lag)
        elif late > lag / 2 and process_time() - self._used < BUSY * lag:
            self._lateness.stood_still(lag)
        else:
            self._lateness.lagged(lag)
            self._lateness.held(lag, self._place or "unknown: the watchdog had no processor either")
        self._next()

    def _watch(self) -> None:
        """Look now and then; once a tick is overdue, note where the threads stand."""
        while not self._ended.wait(TICK):
            now = monotonic()
            self._late = max(self._late, now - self._looked - TICK)
            self._looked = now
            if now - self._due > LONG / 2 and self._place is None:
                self._place = self._where()

    def _where(self) -> str:
        """Return where the loop's thread is, and other threads of mailq that work: one may keep the lock from it."""
        frames = sys._current_frames()  # noqa: SLF001 - nothing else tells it
        places = [place_of(frames.pop(self._watched))]
        del frames[threading.get_ident()]
        places += [place_of(frame) for frame in frames.values() if _works(frame)]
        return ", beside ".join(places)


def place_of(frame: FrameType) -> str:
    """Return file, line and function of the innermost code of mailq, and of the code that it called, if any."""
    own: FrameType | None = frame
    while own is not None and not own.f_code.co_filename.startswith(_PACKAGE):
        own = own.f_back
    if own is None or own is frame:
        return _named(frame)
    return f"{_named(own)} in {_named(frame)}"


def _named(frame: FrameType) -> str:
    name = frame.f_code.co_filename
    short = name.removeprefix(_PACKAGE) if name.startswith(_PACKAGE) else Path(name).name
    return f"{short}:{frame.f_lineno} {frame.f_code.co_qualname}"


def _works(frame: FrameType) -> bool:
    """Tell whether a thread runs code of mailq, and does not just wait."""
    waits = frame.f_code.co_filename == threading.__file__
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return not waits and frame.f_code.co_filename.startswith(_PACKAGE)


@contextmanager
def watching(lateness: Lateness) -> Iterator[None]:
    """Have the running loop watched."""
    watchdog = LoopWatchdog(lateness)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
