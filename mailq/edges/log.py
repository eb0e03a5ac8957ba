"""The log: one line per attempt and per event on standard error, as JSON or for people.

`configure` yields the `Log`, an `Observer`, with a structlog logger for whoever has more to say.
Lines leave through a thread of their own, gathered for a moment, so that a slow, blocked or
broken standard error never delays a delivery; a bounded buffer then drops lines and says how
many. What is worth a metric is decided elsewhere. Whatever the outcome, an attempt is an ordinary
event of level info (as in Postfix); trouble with the broker is a warning, a bug or a stalled
consumer an error.

Processes of one supervisor share one standard error. What leaves in one call is never torn there (a pipe
keeps `PIPE_BUF` octets together, pipe(7), a file any number), so calls end where lines end and no line is longer.

Text from strangers is untrusted: it is cut, what cannot be seen is escaped in both formats (controls,
direction marks, odd spaces), and passwords in URLs are masked wherever free text is logged.
"""

import contextlib
import json
import logging
import os
import re
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog

from mailq.config.operations import LogConfig
from mailq.core.ending import End
from mailq.core.failure import Cause
from mailq.core.job import Job
from mailq.core.journal import JournalStats
from mailq.core.result import Result
from mailq.core.times import format_time
from mailq.core.verdict import Verdict

Logger = structlog.typing.FilteringBoundLogger
Event = MutableMapping[str, Any]
Renderer = Callable[[object, str, Event], bytes]
"""Makes a line of an event; the signature is structlog's for processors."""

MAX_TEXT = 500
"""Characters of a description, reason or name that are logged."""

PIPE_BUF = 4096
"""Octets that leave in one call at most, and of one line: what Linux keeps together in a pipe."""

FILE_BUF = 256 * 1024
"""Octets that leave in one call at most into a file: each call makes deliveries wait for the interpreter's lock."""

CUT = "…"
"""Stands where a text was cut to make its line fit."""

MAX_BUFFER = 8 * 1024 * 1024
"""Octets that wait for a standard error that takes none, until lines are dropped."""

GATHER = 0.05
"""Seconds that a line waits for others, to be written with them."""

PATIENCE = 2.0
"""Seconds that closing waits for a standard error that takes nothing."""

_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]*@")


class Sink:
    """Writes lines to a file descriptor from a thread; `write` returns at once and never raises.

    `render` makes the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, render: Renderer) -> None:
        self._descriptor = descriptor
        self._most = FILE_BUF if stat.S_ISREG(os.fstat(descriptor).st_mode) else PIPE_BUF
        self._render = render
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Hand over one line, its newline included."""
        with self._lock:
            if self._size + len(line) > MAX_BUFFER:
                self._dropped += 1
                return
            self._lines.append(line)
            self._size += len(line)
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what is left, waiting `PATIENCE` seconds at most."""
        self._closing.set()
        self._some.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            closing = self._closing.wait(GATHER)
            with self._lock:
                lines, self._lines, self._size = self._lines, [], 0
                dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(self._render(None, "warning", {"event": "dropped", "lines": dropped}))
            lost = self._put(lines)
            if lost:
                with self._lock:
                    self._dropped += lost + dropped - bool(dropped)
            if closing:
                return

    def _put(self, lines: list[bytes]) -> int:
        """Write everything; return how many lines could not be (EPIPE, ENOSPC, ...)."""
        left = len(lines)
        with contextlib.suppress(OSError):
            for batch in _batches(lines, self._most):
                self._write_whole(b"".join(batch))
                left -= len(batch)
        return left

    def _write_whole(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # someone made the descriptor non-blocking
                time.sleep(GATHER)


def _batches(lines: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """Yield lines by as many as leave in one call."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        size += len(line)
        if batch and size > most:
            yield batch
            batch, size = [], len(line)
        batch.append(line)
    if batch:
        yield batch


class _Lines:
    """What structlog calls a logger: takes finished lines, whatever their level."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = write


class Log:
    """The observer that writes lines, and the `logger` for everything that is no observation."""

    def __init__(self, config: LogConfig, render: Renderer, write: Callable[[bytes], None]) -> None:
        logger = structlog.wrap_logger(
            _Lines(write),
            processors=[render],
            wrapper_class=structlog.make_filtering_bound_logger(config.level),
        )
        self.logger: Logger = logger.bind()
        self._render = render
        self._write = write
        self._attempts = config.attempts and self.logger.is_enabled_for(logging.INFO)
        self._stalled = False
        self._unwritable: str | None = None

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:
        """Write the event `attempt`: who, whither, what came of it, and what it means."""
        if not self._attempts:
            return
        facts = result.facts
        line: Event = {
            "event": "attempt",
            "id": job.identity,
            "recipient": str(job.recipient),
            "envelope": str(job.envelope or ""),
            "state": result.state,
            "result": result.kind,
            "code": result.code,
            "status": result.status,
            "description": result.description[:MAX_TEXT],
            "attempt": result.attempt,
            "outcome": verdict.outcome,
        }
        if result.redelivered or not result.accepted:
            line.update(_particulars(result, verdict))
        for name in ("mta", "from", "to"):
            if name in facts:
                line[name] = str(facts[name])[:MAX_TEXT]
        if "cipher" in facts and (protocol := facts["cipher"].get("protocol")):
            line["tls"] = protocol
        line["ms"] = round(sum(result.timing.values()) * 10) / 10  # round() to digits takes longer
        self._write(self._render(None, "info", line))  # not through structlog, which costs as much as all this

    def consumed(self) -> None:
        """Write nothing: what becomes of it tells more."""

    def ended(self, end: End) -> None:
        """Write the event `ended` at level debug."""
        self.logger.debug("ended", end=end)

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:  # noqa: ARG002
        """Write the event `journal` when it begins and ends to be in trouble, and for each note."""
        for note in notes:
            self.logger.warning("journal", detail=_free(note))
        if trouble is not None and self._unwritable != trouble:
            self.logger.error("journal", change="unwritable", detail=_free(trouble))
        if trouble is None and self._unwritable is not None:
            self.logger.info("journal", change="writable", detail="the journal can be written again")
        self._unwritable = trouble

    def refused(self, result: Result) -> None:
        """Write the event `refused`: a document that is no job, and where it is wrong."""
        line = {"state": result.state, "result": result.kind, "code": result.code, "status": result.status}
        self.logger.info("refused", **line, description=_free(result.description), pointer=_free(result.pointer or ""))

    def parked(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """Write the event `parked` at level debug."""
        self.logger.debug("parked", id=job.identity, until=format_time(until), cause=cause, reason=_free(reason))

    def poisoned(self, reason: str) -> None:
        """Write the event `poisoned`."""
        self.logger.warning("poisoned", reason=_free(reason))

    def published(self, routing_key: str, count: int) -> None:
        """Write the event `published` at level debug."""
        self.logger.debug("published", key=routing_key[:MAX_TEXT], count=count)

    def bug(self, where: str, error: BaseException) -> None:
        """Write the event `bug` with the traceback."""
        self.logger.error("bug", where=_free(where), error=type(error).__name__, traceback=_traceback(error))

    def broker(self, event: str, detail: str) -> None:
        """Write the event `broker`; only good news is below a warning."""
        level = logging.INFO if event in ("connected", "unblocked", "taken") else logging.WARNING
        self.logger.log(level, "broker", change=_free(event), detail=_free(detail))

    def flight(self, jobs: int, sessions: int) -> None:
        """Write nothing: the figure is for metrics."""

    def stalled(self, *, stalled: bool) -> None:
        """Write the event `stalled`, and `resumed` when it is over; once each, however often told."""
        if stalled and not self._stalled:
            self.logger.error("stalled", detail="jobs wait in the outbox but none is delivered to this worker")
        if self._stalled and not stalled:
            self.logger.info("resumed", detail="jobs are delivered to this worker again")
        self._stalled = stalled


def _particulars(result: Result, verdict: Verdict) -> Event:
    """Return what only some attempts have: what was decided and why, and what is odd about them."""
    known = {
        "next": format_time(verdict.at) if verdict.at else None,
        "why": verdict.why,
        "expired": verdict.expired,
        "in_doubt": result.in_doubt,
        "redelivered": result.redelivered,
        "strange": verdict.flags.strange,
    }
    return {name: value for name, value in known.items() if value}


class _Libraries(logging.Handler):
    """Brings warnings of libraries into the log, as the event `library`."""

    def __init__(self, logger: Logger) -> None:
        # Never below warning: at debug, AMQP libraries log frames and with them credentials.
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        line = {"source": record.name, "detail": _free(record.getMessage())}
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = _traceback(record.exc_info[1])
        self._logger.log(record.levelno, "library", **line)


@contextmanager
def configure(config: LogConfig, stream: TextIO | None = None, process: int | None = None) -> Iterator[Log]:
    """Yield the process's log; on the way out every line is written.

    Inside, warnings of libraries that use `logging` take the same way. To be entered once in a
    process, after a fork if there is one. `stream` (standard error) must have a file descriptor.
    `process`, the index under a supervisor, stands in every line.
    """
    stream = stream or sys.stderr
    own = {} if process is None else {"process": process}
    render = _fitting(_for_programs(own) if config.format == "json" else _for_people(own, colours=stream.isatty()))
    sink = Sink(stream.fileno(), render)
    log = Log(config, render, sink.write)
    libraries = _Libraries(log.logger)
    root = logging.getLogger()
    root.addHandler(libraries)
    try:
        yield log
    finally:
        root.removeHandler(libraries)
        sink.close()


def _free(text: str) -> str:
    """Return free text that may hold anything, cut and without passwords of URLs."""
    return _PASSWORD.sub(r"\1:***@", text)[:MAX_TEXT]


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return _PASSWORD.sub(r"\1:***@", text)[-PIPE_BUF:]


def _now() -> datetime:
    return datetime.now(UTC)


def _fitting(render: Renderer) -> Renderer:
    """Return the renderer whose lines fit into one call: of one that does not, the longest texts are cut."""

    def fit(_: object, level: str, event: Event) -> bytes:
        line = render(None, level, event)
        while len(line) > PIPE_BUF:
            name, text = max(((name, str(value)) for name, value in event.items()), key=lambda each: len(each[1]))
            # A character takes one octet or several, so the overhang in characters may be too much.
            kept = max(len(text) - (len(line) - PIPE_BUF), len(text) // 2) - len(CUT)
            # The end of a traceback says most.
            event = {**event, name: CUT + text[-kept:] if name == "traceback" else text[:kept] + CUT}
            line = render(None, level, event)
        return line

    return fit


def _for_programs(own: Event) -> Renderer:
    """Return the renderer for JSON; `own` stands in every line."""

    def render(_: object, level: str, event: Event) -> bytes:
        return _json({"time": _now(), "level": level, "event": event["event"], **own, **event})

    return render


def _json(event: dict[str, Any]) -> bytes:
    try:
        line = orjson.dumps(event, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # lone surrogates, huge integers, foreign types: slower, but never lost
        line = json.dumps(event, default=str).encode() + b"\n"
    if line.isascii() and line.find(b"\x7f") < 0:
        return line
    text = line.decode().removesuffix("\n")
    if not text.isprintable():
        text = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
    return text.encode() + b"\n"


def _for_people(own: Event, *, colours: bool) -> Renderer:
    """Return the renderer for people: time, level, event, then key=value; tracebacks indented below."""
    shades = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"} if colours else {}

    def render(_: object, level: str, event: Event) -> bytes:
        stamp = _now().isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        shade = shades.get(level, "")
        normal = "\x1b[0m" if shade else ""
        head = f"{stamp} {shade}{level:<8}{normal} {_plain(event['event'])}"
        shown = {name: value for name, value in {**own, **event}.items() if name not in ("event", "traceback")}
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in shown.items())])
        trace = str(event.get("traceback", ""))
        below = [f"    | {_plain(part, spaces=True)}" for part in trace.split("\n") if part]
        return ("\n".join([line, *below]) + "\n").encode("utf-8", "backslashreplace")

    return render


def _plain(value: object, *, spaces: bool = False) -> str:
    """Return a value that cannot pretend to be several: quoted and escaped where needed."""
    text = str(value)
    if text and text.isprintable() and (spaces or not (" " in text or '"' in text or "=" in text)):
        return text
    return repr(text)
