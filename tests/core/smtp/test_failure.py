"""How attempts end: always with numbers, and with numbers that agree with each other."""

import re
from itertools import product

import pytest

from mailq.core.smtp.failure import DEFAULTS, DEFAULTS_BY_KIND, Failure, Trouble
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State

ENDINGS = [(state, kind) for state, kind in product(State, Kind) if kind is not Kind.ACCEPTED]


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_every_ending_has_numbers_that_agree(state, kind):
    failure = Failure(state, kind)
    assert 400 <= failure.code <= 599
    assert re.fullmatch(r"[45]\.[0-9]{1,3}\.[0-9]{1,3}", failure.status)
    assert str(failure.code)[0] == failure.status[0]
    assert failure.permanent is (failure.code >= 500)
    assert failure.text == str(failure) != ""
    assert failure.reply is failure.pointer is None


def test_the_tables_name_no_ending_that_is_a_success():
    assert set(DEFAULTS_BY_KIND) == set(Kind) - {Kind.ACCEPTED}
    assert set(DEFAULTS) <= set(ENDINGS)


PERMANENT = {(State.PROCESS, kind) for kind in (Kind.TIMEOUT, Kind.ERROR, Kind.INVALID)} | {(State.STORAGE, Kind.ERROR)}


@pytest.mark.parametrize(("state", "kind"), ENDINGS)
def test_without_a_word_of_the_server_only_our_own_refusals_are_permanent(state, kind):
    assert Failure(state, kind).permanent is ((state, kind) in PERMANENT)


@pytest.mark.parametrize(
    ("given", "code", "status", "text"),
    [
        ({}, 451, "4.4.3", "DNS lookup failed"),
        ({"text": "SERVFAIL"}, 451, "4.4.3", "SERVFAIL"),
        ({"code": 550}, 550, "5.0.0", "DNS lookup failed"),
        ({"code": 556, "status": "5.1.10"}, 556, "5.1.10", "DNS lookup failed"),
        ({"reply": Reply(450, None, "busy")}, 450, "4.0.0", "busy"),
        ({"reply": Reply(550, "5.1.1", "no"), "text": "ours", "code": 400, "status": "4.0.0"}, 550, "5.1.1", "no"),
        ({"reply": Reply(550, None, "")}, 550, "5.0.0", ""),
    ],
)
def test_who_knows_better_is_heard(given, code, status, text):
    given = dict(given)
    failure = Failure(State.DNS, Kind.ERROR, given.pop("text", ""), **given)
    assert (failure.code, failure.status, failure.text) == (code, status, text)


def test_a_place_in_the_job_is_kept():
    assert Failure(State.PROCESS, Kind.INVALID, "x", pointer="/mime").pointer == "/mime"


def test_trouble():
    trouble = Trouble(Kind.LOST, "gone")
    assert (trouble.kind, trouble.text, str(trouble)) == (Kind.LOST, "gone", "gone")
