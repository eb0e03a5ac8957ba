"""Which refusals on a used session are about the session, and what is learnt from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.smtp.reply import make_reply
from mailq.core.smtp.session_limit import LASTS, SessionLimit, about_session, names_limit
from mailq.core.states import State

MAIL, RCPT, DATA = State.MAILFROM, State.RCPTTO, State.DATA

NAMED = [
    "452 4.4.5 Maximum number of messages per session exceeded.",
    "452 4.3.2 too many messages in this connection",
    "550 5.7.0 too many messages in this session",
    "421 4.7.0 Too many messages in this session",
    "421 Maximum message count per session reached (100)",
    "421 4.7.0 only 10 e-mails per connection allowed",
    "450 4.7.1 session limit of 20 transactions exceeded",
    "452 4.5.3 too many recipients received this session",
    "421 4.4.2 Connection dropped: message limit reached for this connection",
]
UNNAMED = [
    "550 5.1.1 user unknown",
    "451 4.7.1 greylisted, try again",
    "421 too many connections from your host",
    "450 4.7.0 too many messages from your network",
    "452 4.2.2 mailbox full: too many messages",
    "554 5.7.1 message refused in this session",
    "503 5.5.1 sender already specified",
]


def reply(text):
    code, _, words = text.partition(" ")
    return make_reply(int(code), [words])


@pytest.mark.parametrize("text", NAMED)
@pytest.mark.parametrize("state", [MAIL, RCPT, DATA])
def test_a_refusal_that_names_the_limit_is_about_the_session(state, text):
    assert names_limit(reply(text))
    assert about_session(state, reply(text))


@pytest.mark.parametrize("text", UNNAMED)
def test_other_refusals_do_not_name_it(text):
    assert not names_limit(reply(text))


@pytest.mark.parametrize(
    ("state", "text", "about"),
    [
        (MAIL, "452 4.3.2 not now", True),  # no recipient is known yet
        (MAIL, "503 5.5.1 sender already specified", True),
        (MAIL, "421 4.3.2 closing", True),
        (MAIL, "550 5.7.1 sender refused", False),
        (MAIL, "552 5.3.4 too big", False),
        (RCPT, "550 5.1.1 user unknown", False),
        (RCPT, "450 4.7.1 greylisted", False),
        (RCPT, "452 4.2.2 mailbox full", False),
        (RCPT, "421 4.7.0 closing", True),
        (RCPT, "503 5.5.1 need MAIL first", True),
        (DATA, "451 4.3.0 not now", False),
        (DATA, "554 5.7.1 refused", False),
        (DATA, "421 4.7.0 closing", True),
        (State.MESSAGE, "452 4.4.5 too many messages in this session", False),
    ],
)
def test_what_is_asked_again_on_a_new_session(state, text, about):
    assert about_session(state, reply(text)) is about


@given(st.text(max_size=2000), st.integers(400, 599))
def test_no_words_take_long_or_raise(text, code):
    names_limit(make_reply(code, text.split("\n")))


def test_a_named_limit_is_believed_at_once_and_for_an_hour():
    limit = SessionLimit().refused(10, 100.0, named=True)

    assert limit.messages == 10
    assert limit.holds(100.0 + LASTS - 1)
    assert not limit.holds(100.0 + LASTS)


def test_a_refusal_without_its_reason_is_believed_when_it_comes_again_after_as_many_messages():
    first = SessionLimit().refused(10, 0.0, named=False)
    other = first.refused(7, 1.0, named=False)
    again = first.refused(10, 1.0, named=False)

    assert not first.holds(0.0)
    assert not other.holds(1.0)
    assert (again.messages, again.holds(1.0)) == (10, True)


def test_the_smallest_limit_counts_until_it_is_forgotten():
    limit = SessionLimit().refused(10, 0.0, named=True).refused(5, 1.0, named=True).refused(8, 2.0, named=True)

    assert limit.messages == 5
    assert limit.refused(20, 2.0 + LASTS, named=True).messages == 20
