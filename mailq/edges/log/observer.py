"""The log: one line per attempt and per event, as JSON or for people.

`configure` yields the `Log`, an `Observer`, with a structlog logger for whoever has more to say.
What is worth a metric is decided elsewhere. Whatever the outcome, an attempt is an ordinary
event of level info (as in Postfix); trouble with the broker is a warning, a bug or a stalled
consumer an error. Text from strangers is cut, and passwords in URLs are masked wherever free text is logged.
"""

import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import TextIO

import structlog

from mailq.config.operations import LogConfig
from mailq.core.answers.verdict import Verdict
from mailq.core.bounded import BoundedDict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.times import format_time
from mailq.edges.log.render import Event, Renderer, renderer
from mailq.edges.log.writer import PIPE_BUF, LogWriter

Logger = structlog.typing.FilteringBoundLogger

MAX_TEXT = 500
"""Characters of a description, reason or name that are logged."""

LOGIN_SILENCE = 600.0
"""Seconds for which a login that is refused is not warned of again."""

_PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]*@")


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
        self._logins: BoundedDict[str, float] = BoundedDict()

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

    def ended(self, end: Disposition) -> None:
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

    def delayed(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """Write the event `delayed` at level debug, and once in a while a warning that a login is refused."""
        self.logger.debug("delayed", id=job.identity, until=format_time(until), cause=cause, reason=_free(reason))
        if cause is Cause.LOGIN and monotonic() >= self._logins.get(reason, 0.0):
            self._logins.remember(reason, monotonic() + LOGIN_SILENCE)
            advice = "look at user name, password and certificate of the smarthost with `mailq check`"
            self.logger.warning("login", detail=_free(reason), advice=advice)

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

    def in_flight(self, jobs: int, sessions: int) -> None:
        """Write nothing: the figure is for metrics."""

    def session_limit(self, host: str, messages: int) -> None:
        """Write the event `session_limit`."""
        detail = "the receiver refuses further messages in one session; for an hour sessions end before that"
        self.logger.info("session_limit", host=_free(host), messages=messages, detail=detail)

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
    render = renderer(config.format, own, colours=stream.isatty())
    outlet = LogWriter(stream.fileno(), render)
    log = Log(config, render, outlet.write)
    libraries = _Libraries(log.logger)
    root = logging.getLogger()
    root.addHandler(libraries)
    try:
        yield log
    finally:
        root.removeHandler(libraries)
        outlet.close()


def _free(text: str) -> str:
    """Return free text that may hold anything, cut and without passwords of URLs."""
    return _PASSWORD.sub(r"\1:***@", text)[:MAX_TEXT]


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return _PASSWORD.sub(r"\1:***@", text)[-PIPE_BUF:]
