"""What strangers say, as it is told: results are JSON without controls, log lines are one line each and can be seen."""

import json
import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import targets
from mailq.config.operations import LogConfig
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail, accepted, failed
from mailq.core.smtp.failure import Cause, Failure
from mailq.core.smtp.reply import printable
from mailq.core.states import Kind, State
from mailq.edges.log import Log
from mailq.edges.log.render import renderer
from mailq.edges.log.writer import PIPE_BUF

RENDERERS = {
    "json": renderer("json", {}),
    "console": renderer("console", {}, colours=True),
}
ODD = st.sampled_from(
    [
        "\n",
        "\r",
        "\0",
        "\x1b]0;x\x07",
        "\x7f",
        "\x85",
        "\x9b2J",
        "\u2028",
        "\u2029",
        "\u202e",
        "\u061c",
        "\u200b",
        "\u2060",
        "\ufeff",
        "\ufff9",
        "\U000e0041",
        "\ue000",
        "\u0378",
        "\ud800",
        "\xa0",
        "\u3000",
        "é",
        '"',
        "=",
        " ",
        "level=error",
        "amqp://u:hunter2@h/",
        "\\",
        "{",
        "}",
    ]
)
TEXT = st.lists(ODD | st.text(max_size=3), max_size=12).map("".join)
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 1, 1, 400]))


def job(identity):
    return Job.parse(b'{"recipient":"\xc3\xa9\xe2\x80\x8d@b.test","mime":"x"}', message_id=identity or None, limit=1000)


def written(format_, call):
    """Return the lines that a call on the log writes, and check that each is one and can be seen."""
    lines = []
    call(Log(LogConfig(format=format_, level="debug"), RENDERERS[format_], lines.append))
    for line in lines:
        assert len(line) <= PIPE_BUF
        text = line.decode()
        assert text.endswith("\n")
        text = re.sub(r"\x1b\[\d+m", "", text)  # ours
        for row in text[:-1].split("\n"):
            assert row.isprintable()
        assert format_ == "console" or json.loads(text)["event"]
        assert "hunter2" not in text
    return lines


@pytest.mark.parametrize("format_", RENDERERS)
@given(said=LONG, mta=LONG, identity=TEXT)
def test_an_attempt_is_one_line_whatever_was_said(format_, said, mta, identity):
    said = said.replace("hunter2", "")  # descriptions are the receiver's words, in the results too
    mta = mta.replace("hunter2", "")
    identity = identity.replace("hunter2", "")
    trail = Trail(facts={"mta": mta, "to": "192.0.2.1", "command": "x"})
    failure = Failure(State.RCPTTO, Kind.INVALID, said)
    result = failed(trail, failure, time=targets.NOW, attempt=1)

    lines = written(format_, lambda log: log.attempted(job(identity), result, Verdict(Outcome.FAILURE)))

    assert len(lines) == 1
    assert lines[0].count(b"\n") == 1


@pytest.mark.parametrize("format_", RENDERERS)
@given(text=LONG)
def test_every_other_event_is_one_line_too(format_, text):
    refusal = failed(Trail(), Failure(State.PROCESS, Kind.INVALID, text, pointer=text), time=targets.NOW, attempt=1)

    def call(log):
        log.refused(refusal)
        log.poisoned(text)
        log.published(text.replace("hunter2", ""), 1)
        log.broker("lost", text)
        log.delayed(job(text.replace("hunter2", "")), targets.NOW, Cause.PAUSE, text)

    lines = written(format_, call)

    assert len(lines) == 5
    assert all(line.count(b"\n") == 1 for line in lines)


@pytest.mark.parametrize("format_", RENDERERS)
@given(text=LONG)
def test_a_bug_is_one_event(format_, text):
    (event,) = written(format_, lambda log: log.bug(text, ValueError(text)))
    if format_ == "console":
        assert all(row.startswith(b"    | ") for row in event.split(b"\n")[1:-1])


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.sampled_from([250, 421, 550]))
def test_whatever_a_server_answers_its_result_is_published_as_json_without_controls(texts, code):
    lines = [text.replace(b"\n", b"") for text in texts]
    marks = [b"-"] * (len(lines) - 1) + [b" "]
    stream = b"".join(b"%d%s%s\r\n" % (code, mark, line) for mark, line in zip(marks, lines, strict=True))
    ((reply,), broken) = targets.read([stream])

    assert not broken
    trail = Trail(facts={"mta": printable(lines[0]), "command": "DATA"})
    if reply.positive:
        result = accepted(trail, reply, time=targets.NOW, attempt=1)
    else:
        result = failed(trail, Failure(State.DATA, Kind.ERROR, reply=reply), time=targets.NOW, attempt=1)
    targets.told(result)
    assert orjson.loads(orjson.dumps(result.as_json()))["code"] == code
