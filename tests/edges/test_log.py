"""Log lines, read back from real pipes and files."""

import fcntl
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from mailq.config.operations import LogConfig
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.jobs.job import Job
from mailq.core.journal.records import JournalStats
from mailq.core.outcomes import Disposition
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.states import Kind, State
from mailq.edges.log import configure, writer

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
JOB = Job.parse(
    b'{"recipient":"someone@example.com","envelope":"news@sender.example","mime":"x",'
    b'"smarthost":{"hostname":"relay.example","username":"me","password":"hunter2"}}',
    message_id="7f3a-1",
    limit=1000,
)
FACTS = {"mta": "mx1.example.com", "from": "192.0.2.1", "to": "198.51.100.9", "cipher": {"protocol": "TLSv1.3"}}
STATS = JournalStats()
NASTY = 'evil \x1b[31m\nlevel=error "forged"\r\x00\x7f\x9b2J\u202e\u2028end'


def result(state=State.MESSAGE, kind=Kind.ACCEPTED, text="queued", facts=None, **more):
    timing = {State.CONNECT: 20.04, State.MESSAGE: 101.0}
    return Result(state, kind, NOW, 2, 250, "2.0.0", text, FACTS if facts is None else facts, timing, **more)


class Written:
    """A file that is logged to, and what stands in it when the log is closed."""

    def __init__(self, path):
        self.path = path

    @contextmanager
    def log(self, **config):
        with self.path.open("w") as stream, configure(LogConfig(**config), stream) as log:
            yield log

    @property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @property
    def lines(self):
        # not splitlines, which also cuts at characters that JSON may hold
        *lines, rest = self.text.split("\n")
        assert rest == ""
        return [json.loads(line) for line in lines]


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path / "log")


def test_an_attempt_is_one_line_with_everything_one_asks_for(written):
    before = datetime.now(UTC)
    with written.log() as log:
        log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))

    [line] = written.lines
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "level": "info",
        "event": "attempt",
        "id": "7f3a-1",
        "recipient": "someone@example.com",
        "envelope": "news@sender.example",
        "state": "message",
        "result": "accepted",
        "code": 250,
        "status": "2.0.0",
        "description": "queued",
        "attempt": 2,
        "outcome": "success",
        "mta": "mx1.example.com",
        "from": "192.0.2.1",
        "to": "198.51.100.9",
        "tls": "TLSv1.3",
        "ms": 121.0,
    }


def test_what_is_not_known_is_absent(written):
    with written.log() as log:
        log.attempted(JOB, result(State.DNS, Kind.ERROR, facts={}), Verdict(Outcome.FAILURE))

    [line] = written.lines
    assert not {"mta", "from", "to", "tls", "next", "expired", "in_doubt"} & line.keys()


def test_a_retry_says_when_and_doubt_and_expiry_are_said(written):
    doubtful = result(State.MESSAGE, Kind.LOST, in_doubt=True)
    with written.log() as log:
        log.attempted(JOB, doubtful, Verdict(Outcome.RETRY, NOW + timedelta(minutes=10)))
        log.attempted(JOB, doubtful, Verdict(Outcome.FAILURE, expired=True))

    retry, failure = written.lines
    assert retry["next"] == "2030-01-31 12:10:00"
    assert retry["in_doubt"] is True
    assert "expired" not in retry
    assert failure["expired"] is True
    assert {retry["level"], failure["level"]} == {"info"}


def test_attempt_lines_can_be_switched_off(written):
    with written.log(attempts=False) as log:
        log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))
        log.poisoned("not JSON")

    assert [line["event"] for line in written.lines] == ["poisoned"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_lines_below_the_level_are_not_written(written, format_):
    with written.log(level="warning", format=format_) as log:
        log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))
        log.broker("connected", "")
        log.delayed(JOB, NOW, Cause.RATE, "too fast")
        log.broker("lost", "heartbeat")

    assert written.text.count("\n") == 1
    assert "heartbeat" in written.text


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda log: log.delayed(JOB, NOW, Cause.RATE, "too fast"),
            {"event": "delayed", "until": "2030-01-31 12:00:00", "cause": "rate", "reason": "too fast"},
        ),
        (lambda log: log.poisoned("no JSON"), {"level": "warning", "event": "poisoned", "reason": "no JSON"}),
        (
            lambda log: log.refused(result(State.PROCESS, Kind.INVALID, "no recipient", pointer="/recipient")),
            {"level": "info", "event": "refused", "state": "process", "result": "invalid", "pointer": "/recipient"},
        ),
        (lambda log: log.published("success", 4), {"level": "debug", "event": "published", "count": 4}),
        (lambda log: log.broker("connected", "b1"), {"level": "info", "event": "broker", "change": "connected"}),
        (lambda log: log.broker("unblocked", ""), {"level": "info", "event": "broker", "change": "unblocked"}),
        (lambda log: log.broker("lost", "EOF"), {"level": "warning", "event": "broker", "detail": "EOF"}),
        (lambda log: log.broker("blocked", "disk"), {"level": "warning", "event": "broker", "change": "blocked"}),
        (lambda log: log.stalled(stalled=True), {"level": "error", "event": "stalled"}),
        (lambda log: log.ended(Disposition.REPEATED), {"level": "debug", "event": "ended", "end": "repeated"}),
        (
            lambda log: log.journal(None, ("a file was damaged",), STATS),
            {"level": "warning", "event": "journal", "detail": "a file was damaged"},
        ),
        (
            lambda log: log.journal("journal directory /x is full", (), STATS),
            {"level": "error", "event": "journal", "change": "unwritable", "detail": "journal directory /x is full"},
        ),
        (lambda log: log.logger.info("started", pid=7), {"level": "info", "event": "started", "pid": 7}),
    ],
)
def test_every_event_has_its_line(written, call, expected):
    with written.log(level="debug") as log:
        call(log)

    [line] = written.lines
    assert {key: line.get(key) for key in expected} == expected


def test_what_comes_and_how_much_is_in_flight_is_for_metrics_only(written):
    with written.log(level="debug") as log:
        log.consumed()
        log.in_flight(1, 2)
        log.journal(None, (), STATS)

    assert written.text == ""


def test_stalled_and_its_end_are_told_once_each(written):
    with written.log() as log:
        for stalled in (False, True, True, False, False, True):
            log.stalled(stalled=stalled)

    assert [line["event"] for line in written.lines] == ["stalled", "resumed", "stalled"]


def test_trouble_of_the_journal_and_its_end_are_told_once_each(written):
    with written.log() as log:
        for trouble in (None, "is full", "is full", "is read-only", None, None):
            log.journal(trouble, (), STATS)

    told = [(line["event"], line["change"], line["detail"]) for line in written.lines]
    assert told == [
        ("journal", "unwritable", "is full"),
        ("journal", "unwritable", "is read-only"),
        ("journal", "writable", "the journal can be written again"),
    ]


def fail_with(error):
    try:
        raise error
    except type(error) as raised:
        return raised


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_bug_has_its_traceback(written, format_):
    with written.log(format=format_) as log:
        log.bug("settlement", fail_with(ValueError("odd thing")))

    text = written.text if format_ == "console" else written.lines[0]["traceback"]
    assert "fail_with" in text
    assert "ValueError: odd thing" in text
    if format_ == "json":
        assert written.lines[0]["where"] == "settlement"
        assert written.lines[0]["level"] == "error"


def test_texts_are_cut(written):
    with written.log() as log:
        log.attempted(JOB, result(text="x" * 4000, facts={"mta": "m" * 4000}), Verdict(Outcome.SUCCESS))
        log.poisoned("y" * 4000)
        log.bug("z" * 4000, fail_with(ValueError("v" * 100_000)))

    attempt, poisoned, bug = written.lines
    assert len(attempt["description"]) == len(attempt["mta"]) == len(poisoned["reason"]) == len(bug["where"]) == 500
    assert len(bug["traceback"]) > 3000
    assert bug["traceback"].startswith("…")
    assert bug["traceback"].endswith("vvv\n")


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize(
    "texts",
    [
        {"one": "x" * 9000, "short": "kept"},
        {"one": "\x00" * 9000, "two": "é" * 5000, "short": "kept"},
        {"one": {"deep": ["y" * 9000]}, "short": "kept"},
        {f"t{number}": "z" * 500 for number in range(20)} | {"short": "kept"},
    ],
)
def test_no_line_is_longer_than_a_pipe_keeps_together(written, format_, texts):
    with written.log(format=format_) as log:
        log.logger.info("long", **texts)
        log.logger.info("next")

    long, following, rest = written.path.read_bytes().split(b"\n")
    assert 3000 < len(long) < 4096
    assert b"kept" in long
    assert "…".encode() in long
    assert b"next" in following
    assert rest == b""
    if format_ == "json":
        assert written.lines[0].keys() == {"time", "level", "event", *texts}


@pytest.mark.parametrize("format_", ["json", "console"])
def test_control_characters_of_strangers_are_escaped(written, format_):
    with written.log(format=format_) as log:
        log.attempted(JOB, result(text=NASTY, facts={"mta": NASTY}), Verdict(Outcome.SUCCESS))
        log.poisoned(NASTY)
        log.broker("lost", NASTY)
        log.journal(NASTY, (NASTY,), STATS)
        log.bug(NASTY, fail_with(ValueError(NASTY)))

    lines = written.text.split("\n")
    assert all(line.isprintable() for line in lines)
    if format_ == "json":
        assert written.lines[0]["description"] == NASTY
        assert written.lines[1]["reason"] == NASTY
    else:
        starts = [line for line in lines if line and not line.startswith("    | ")]
        assert [line.split()[3] for line in starts] == ["attempt", "poisoned", "broker", "journal", "journal", "bug"]


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("odd", ["\ud800 lonely", 2**70, object(), {1: "x"}])
def test_what_json_cannot_say_is_still_logged(written, format_, odd):
    with written.log(format=format_) as log:
        log.logger.warning("odd", value=odd, after="all")

    assert written.text.count("\n") == 1
    assert "after" in written.text


@pytest.mark.parametrize("format_", ["json", "console"])
def test_no_password_is_ever_logged(written, format_):
    url = "amqps://guest:s3cret@broker.example/vhost"
    with written.log(format=format_, level="debug") as log:
        log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))
        log.broker("retrying", f"cannot connect to {url}")
        log.poisoned(f"reason {url}")
        log.bug("connect", fail_with(ConnectionError(url)))
        logging.getLogger("aiormq").warning("lost %s", url)

    assert "s3cret" not in written.text
    assert "hunter2" not in written.text
    assert written.text.count("amqps://guest:***@broker.example/vhost") >= 4


def test_warnings_of_libraries_take_the_same_way_and_chatter_does_not(written):
    library = logging.getLogger("some.library")
    with written.log(level="debug") as log:
        library.error("went wrong: %s\nreally", "x", exc_info=fail_with(ValueError("inner")))
        library.info("chatter")
        library.debug("frame with credentials")
        assert log
    library.error("after the end")

    [line] = written.lines
    assert (line["level"], line["event"], line["source"]) == ("error", "library", "some.library")
    assert line["detail"] == "went wrong: x\nreally"
    assert "ValueError: inner" in line["traceback"]


def test_console_lines_are_for_people(written):
    with written.log(format="console") as log:
        log.attempted(JOB, result(text="queued as 4F3A2"), Verdict(Outcome.SUCCESS))

    words = written.text
    assert " info     attempt id=7f3a-1 recipient=someone@example.com " in words
    assert " description='queued as 4F3A2' " in words
    assert words.endswith(" ms=121.0\n")


def test_no_line_is_lost_or_torn_when_many_threads_write_until_the_end(written):
    def work(log, name):
        for number in range(2000):
            log.logger.info("line", name=name, number=number)

    with written.log() as log:
        threads = [threading.Thread(target=work, args=(log, name)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seen = [(line["name"], line["number"]) for line in written.lines]
    assert sorted(seen) == [(name, number) for name in range(4) for number in range(2000)]
    for name in range(4):
        assert [number for other, number in seen if other == name] == list(range(2000))


def wait_for_line(reader):
    """Return the next line of a pipe; the test's own timeout is the deadline."""
    return json.loads(reader.readline())


_WRITER = """
import sys
from mailq.config.operations import LogConfig
from mailq.edges.log import configure, writer
writer.PATIENCE, number = 60, int(sys.argv[1])
with configure(LogConfig(), process=number) as log:
    log.logger.info("ready")
    sys.stdin.read()
    for line in range(2000):
        if line % 100:
            log.logger.info("line", number=line, text="x" * (line * 7919 % 1500))
        else:
            log.bug("somewhere", ValueError("v" * 20_000))
    print("handed over", flush=True)
"""


def test_processes_that_share_a_slow_pipe_do_not_tear_each_others_lines():
    readable, writable = os.pipe()
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(readable, "rb") as reader, os.fdopen(writable, "wb") as stream:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
            )
            for number in range(2)
        ]
        stream.close()
        assert [wait_for_line(reader)["event"] for _ in writers] == ["ready", "ready"]
        for writer in writers:
            writer.stdin.close()
        for writer in writers:  # 1.5 MB of each wait in memory from now on, and the pipe takes 4 KB
            assert writer.stdout.readline() == b"handed over\n"
            writer.stdout.close()
        lines = []
        while len({line["process"] for line in lines}) < 2:  # a page at a time until both write
            lines.append(json.loads(reader.readline()))
            time.sleep(0.002)
        lines += [json.loads(line) for line in reader]
    assert [writer.wait(20) for writer in writers] == [0, 0]

    for process in range(2):
        own = [line for line in lines if line["process"] == process]
        assert [line.get("number") for line in own] == [number if number % 100 else None for number in range(2000)]
        assert {line["event"] for line in own} == {"line", "bug"}
    assert sum(one["process"] != other["process"] for one, other in itertools.pairwise(lines)) > 2  # they did meet


@pytest.mark.parametrize("format_", ["json", "console"])
def test_every_line_of_a_supervised_process_has_its_index(tmp_path, format_):
    with (tmp_path / "log").open("w") as stream, configure(LogConfig(format=format_), stream, process=3) as log:
        log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))
        log.poisoned("x")
        logging.getLogger("some.library").warning("y")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3
    index = '"process":3' if format_ == "json" else " process=3 "
    assert all(index in line for line in lines)


def test_a_line_appears_without_waiting_for_the_next():
    readable, writable = os.pipe()
    reader, stream = os.fdopen(readable, "rb"), os.fdopen(writable, "w")
    with reader, stream, configure(LogConfig(), stream) as log:
        log.poisoned("first")
        assert wait_for_line(reader)["reason"] == "first"
        log.poisoned("second")
        assert wait_for_line(reader)["reason"] == "second"


def test_a_broken_pipe_stops_nothing():
    readable, writable = os.pipe()
    os.close(readable)
    with os.fdopen(writable, "w") as stream:
        with configure(LogConfig(), stream) as log:
            for _ in range(3):
                log.attempted(JOB, result(), Verdict(Outcome.SUCCESS))
                log.bug("x", ValueError("y"))
        assert not [thread for thread in threading.enumerate() if thread.name == "log"]


@pytest.mark.alone
def test_a_blocked_pipe_delays_nothing_and_what_is_dropped_is_counted(monkeypatch):
    monkeypatch.setattr(writer, "MAX_BUFFER", 20_000)
    readable, writable = os.pipe()
    fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
    reader, stream = os.fdopen(readable, "rb"), os.fdopen(writable, "w")
    written = dropped = 0
    with reader, stream, configure(LogConfig(), stream) as log:
        started = monotonic()
        for _ in range(2000):
            log.attempted(JOB, result(text="x" * 400), Verdict(Outcome.SUCCESS))
        assert monotonic() - started < 2
        while written + dropped < 2000:
            line = wait_for_line(reader)
            written += line["event"] == "attempt"
            dropped += line.get("lines", 0)
        log.poisoned("well again")
        assert wait_for_line(reader)["reason"] == "well again"

    assert written + dropped == 2000
    assert dropped > 1000


def test_a_pipe_blocked_for_good_does_not_keep_the_process_from_ending(monkeypatch):
    monkeypatch.setattr(writer, "PATIENCE", 0.2)
    readable, writable = os.pipe()
    stream = os.fdopen(writable, "w")
    with os.fdopen(readable, "rb") as reader:
        started = monotonic()
        with configure(LogConfig(), stream) as log:
            for _ in range(1000):
                log.poisoned("x" * 400)
        assert monotonic() - started < 10
        drain = threading.Thread(target=reader.read)
        drain.start()
        stuck = [thread for thread in threading.enumerate() if thread.name == "log"]
        for thread in stuck:
            thread.join(10)
        stream.close()
        drain.join(10)


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing():
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    got = []
    with os.fdopen(readable, "rb") as reader:
        thread = threading.Thread(target=lambda: got.extend(reader.readlines()))
        thread.start()
        with os.fdopen(writable, "w") as stream, configure(LogConfig(), stream) as log:
            for number in range(3000):
                log.logger.info("line", number=number, text="x" * 100)
        thread.join(10)

    assert [json.loads(line)["number"] for line in got] == list(range(3000))


def test_a_login_that_is_refused_is_warned_of_once(tmp_path):
    written = Written(tmp_path / "log")
    with written.log(level="warning") as log:
        for _ in range(3):
            log.delayed(JOB, NOW, Cause.LOGIN, "relay.example port 25: login as me failed")
        log.delayed(JOB, NOW, Cause.RATE, "the rate allowed is used up")

    assert [line["event"] for line in written.lines] == ["login"]
    assert written.lines[0]["detail"] == "relay.example port 25: login as me failed"
