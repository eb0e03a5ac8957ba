"""What is inferred from an ending: five flags by a table, and the time that a server names."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.answers.flags import Flags, infer, retry_hint
from mailq.core.states import AUTH_STATES, ORDER, Kind, State

KINDS = [kind for kind in Kind if kind is not Kind.ACCEPTED]

HINTS = {
    "Greylisted, please try again in 300 seconds": 300,
    "<b@b.test>: Recipient address rejected: Greylisted for 5 minutes": 300,
    "Greylisting in action, please come back in 00:04:59": 299,
    "Greylisting in action, please come back later": None,
    "Greylisted, see http://postgrey.schweikert.ch/help/b.test.html": None,
    "Greylisted for 60 seconds (see http://isg.ee.ethz.ch/tools/postgrey/)": 60,
    "Greylisting enabled, try again in 15 minutes": 900,
    "greylisting: wait 58 seconds": 58,
    "you have been greylisted, retry after 5 minutes": 300,
    "Message temporarily deferred for 30 minutes": 1800,
    "Try again later": None,
    "Please try again in a few minutes": None,
    "Please try again in an hour": 3600,
    "Please try again in half an hour.": 1800,
    "Please try again in one minute": 60,
    "you may retry in two minutes": 120,
    "Too many connections, try again in 10 min.": 600,
    "Too many connections from your host. Retry in 1 hour": 3600,
    "Rate limit reached; try again later in 60 second(s)": 60,
    "Rate limited. Retry-After: 120": 120,
    "throttled, retry_after=45": 45,
    "retry-after: 90 seconds": 90,
    "Please wait at least 15 minutes before trying again": 900,
    "You must wait 4 minutes and 12 seconds": 252,
    "wait another 30 secs please": 30,
    "try again in 1h30m": 5400,
    "retry in 5m0s": 300,
    "Try again in 1 hour, 5 minutes": 3900,
    "temporarily blocked for 2 hours": 7200,
    "Your IP has been blocked for the next 24 hours": 86_400,
    "suspended for 1 day": 86_400,
    "298 seconds remaining": 298,
    "time left: 12 minutes": 720,
    "remaining time: 00:01:30": 90,
    "Please, in 5 minutes try again": 300,
    "bitte in 5 Minuten erneut versuchen": 300,
    "Bitte versuchen Sie es in 3 Stunden erneut": 10_800,
    "Adresse temporairement bloquee, reessayez dans 10 minutes": 600,
    "Réessayez dans 2 heures": 7200,
    "Please retry delivery after 1.5 hours": 5400,
    "try sending again in 20m": 1200,
    "please try connecting again in 120s": 120,
    "Please resend the message in 7 minutes": 420,
    "try\nagain\nin\n300\nseconds": 300,
    "TRY AGAIN IN 300 SECONDS": 300,
    "Too many messages in 10 minutes, try again later": None,
    "more than 100 messages per 60 minutes; try again later": None,
    "You sent 10 messages in 5 minutes. Try again later": None,
    "try again within 24 hours": None,
    "try again after 12:30:00": None,
    "try again in 5": None,
    "try again in 0 seconds": None,
    "retry in 500 ms": None,
    "message older than 5 days": None,
    "mailbox is full: 5 days over quota": None,
    "see https://example.com/wait/300": None,
    "timeout after 30 seconds": None,
    "": None,
}


@pytest.mark.parametrize(("text", "seconds"), HINTS.items())
def test_the_time_that_a_server_names(text, seconds):
    assert retry_hint(text) == seconds


def test_a_figure_far_into_a_reply_is_not_looked_for():
    assert retry_hint("x" * 490 + " try again in 5 minutes") is None
    assert retry_hint("x" * 400 + " try again in 5 minutes") == 300


@given(st.text(st.characters(exclude_categories=[]), max_size=700))
def test_any_text_can_be_read(text):
    assert (retry_hint(text) or 1) >= 1


@given(st.integers(1, 999_999), st.sampled_from([("seconds", 1), ("min", 60), ("hours", 3600), ("d", 86_400)]))
def test_every_figure_and_unit(number, unit):
    assert retry_hint(f"wait {number} {unit[0]}") == number * unit[1]


@pytest.mark.parametrize("state", [State.INTRO, State.MAILFROM, State.RCPTTO, State.DATA, State.MESSAGE])
def test_greylisting_is_an_answer_that_passes(state):
    for code in (421, 450, 451):
        assert infer(state, Kind.ERROR, code, "4.7.1", greylisting=True).greylisted
        assert not infer(state, Kind.ERROR, code, "4.7.1").greylisted
    assert not infer(state, Kind.ERROR, 550, "5.7.1", greylisting=True).greylisted
    assert not infer(state, Kind.TIMEOUT, 451, "4.7.1", greylisting=True).greylisted
    assert not infer(State.DNS, Kind.ERROR, 451, "4.7.1", greylisting=True).greylisted


def test_fatal_is_the_first_digit():
    for state, kind, code in product(State, KINDS, [250, 421, 450, 451, 499, 500, 550, 599]):
        fatal = code // 100 == 5 and state not in AUTH_STATES  # a login is between the sender and the relay
        assert infer(state, kind, code, f"{code // 100}.0.0").fatal is fatal


@pytest.mark.parametrize("code", [421, 450, 550])
def test_trouble_of_the_dns_that_may_pass_leaves_the_smarthost(code):
    assert infer(State.DNS, Kind.ERROR, code, f"{code // 100}.0.0").fallback is (code != 550)


@pytest.mark.parametrize(
    ("state", "kind", "code", "status", "number", "individual"),
    [
        (State.PROCESS, Kind.ERROR, 550, "5.3.5", None, True),
        (State.STORAGE, Kind.ERROR, 550, "5.6.0", None, True),
        (State.DNS, Kind.ERROR, 451, "4.4.3", None, False),
        (State.BIND, Kind.ERROR, 451, "4.4.4", None, False),
        (State.CONNECT, Kind.TIMEOUT, 451, "4.4.1", None, False),
        (State.INTRO, Kind.ERROR, 554, "5.7.1", None, False),
        (State.AUTHPLAIN, Kind.ERROR, 535, "5.7.8", None, False),
        (State.RCPTTO, Kind.TIMEOUT, 451, "4.4.2", None, False),
        (State.RCPTTO, Kind.ERROR, 421, "4.1.1", None, False),
        (State.RCPTTO, Kind.ERROR, 550, "5.1.1", None, True),
        (State.RCPTTO, Kind.ERROR, 550, "5.1.2", None, False),
        (State.RCPTTO, Kind.ERROR, 556, "5.1.10", None, False),
        (State.RCPTTO, Kind.ERROR, 552, "5.2.2", None, True),
        (State.RCPTTO, Kind.ERROR, 452, "4.3.1", None, False),
        (State.MAILFROM, Kind.ERROR, 552, "5.3.4", None, True),
        (State.RCPTTO, Kind.ERROR, 452, "4.5.3", None, True),
        (State.MESSAGE, Kind.ERROR, 554, "5.6.0", None, True),
        (State.MESSAGE, Kind.ERROR, 554, "5.7.1", None, False),
        (State.MESSAGE, Kind.ERROR, 554, "5.7.1", 52, True),
        (State.MESSAGE, Kind.ERROR, 554, "5.1.1", 51, False),
        (State.MESSAGE, Kind.ERROR, 554, "5.6.0", 1, True),
        (State.RCPTTO, Kind.ERROR, 550, "5.0.0", None, True),
    ],
)
def test_individual(state, kind, code, status, number, individual):
    assert infer(state, kind, code, status, number).individual is individual


def test_greylisting_is_individual_whatever_its_status_and_class():
    assert infer(State.RCPTTO, Kind.ERROR, 450, "4.7.1", 51, greylisting=True).individual


@pytest.mark.parametrize(
    ("kind", "code", "status", "strange"),
    [
        (Kind.INVALID, 451, "4.5.0", True),
        (Kind.ERROR, 450, "4.2.1", False),
        (Kind.ERROR, 550, "5.1.1", False),
        (Kind.ERROR, 550, "4.1.1", True),
        (Kind.ERROR, 599, "5.0.0", True),
        (Kind.ERROR, 250, "2.0.0", True),
        (Kind.ERROR, 354, "3.0.0", True),
        (Kind.TIMEOUT, 451, "4.4.2", False),
        (Kind.LOST, 451, "4.4.2", False),
    ],
)
def test_strange(kind, code, status, strange):
    assert infer(State.DATA, kind, code, status).strange is strange


@given(
    st.sampled_from(list(State)),
    st.sampled_from(KINDS),
    st.integers(200, 599),
    st.sampled_from(["4.7.1", "5.1.1", "5.0.0", ""]),
    st.none() | st.integers(0, 200),
    st.booleans(),
)
def test_flags_hold_together(state, kind, code, status, number, greylisting):
    flags = infer(state, kind, code, status, number, greylisting=greylisting)
    assert isinstance(flags, Flags)
    assert not (flags.greylisted and flags.fatal)
    if ORDER[state] < ORDER[State.DNS]:
        assert not flags.fallback
