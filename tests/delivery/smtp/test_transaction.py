"""The transaction: replies matched to states, pipelined or not."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.smtp.reply import Reply, ReplyReader
from mailq.core.states import Kind, State
from mailq.delivery.smtp.transaction import Transaction

MAIL, RCPT = "MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>"


@dataclass
class Walked:
    """What came of a transaction, and what was written for it."""

    transaction: Transaction
    written: list[str]


def walk(replies, *, pipelining, data=True):
    """Play a transaction against replies until nothing is owed."""
    transaction = Transaction(MAIL, RCPT, pipelining=pipelining, data=data)
    written = []
    replies = iter(replies)
    while True:
        written.extend(transaction.to_write())
        if transaction.awaiting is None:
            return Walked(transaction, written)
        transaction.answer(next(replies))


def reply(code):
    return Reply(code, None, "text")


def test_pipelined_commands_are_one_write():
    transaction = Transaction(MAIL, RCPT, pipelining=True)

    assert transaction.to_write() == (MAIL, RCPT, "DATA")
    assert transaction.to_write() == ()
    assert transaction.awaiting is State.MAILFROM


def test_without_pipelining_each_command_waits_for_its_answer():
    transaction = Transaction(MAIL, RCPT, pipelining=False)

    assert transaction.to_write() == (MAIL,)
    assert transaction.to_write() == ()
    transaction.answer(reply(250))
    assert transaction.to_write() == (RCPT,)


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("codes", "state", "kind"),
    [
        ((550, 503, 503), State.MAILFROM, Kind.ERROR),
        ((250, 451, 503), State.RCPTTO, Kind.ERROR),
        ((250, 250, 554), State.DATA, Kind.ERROR),
        ((354, 250, 354), State.MAILFROM, Kind.INVALID),
        ((250, 250, 250), State.DATA, Kind.INVALID),
        ((599, 503, 503), State.MAILFROM, Kind.ERROR),
    ],
)
def test_the_first_refusal_is_the_answer(codes, state, kind, pipelining):
    refusal = walk(map(reply, [*codes, 554]), pipelining=pipelining).transaction.refusal

    assert (refusal.state, refusal.kind) == (state, kind)


def test_without_pipelining_nothing_follows_a_refusal():
    assert walk([reply(550)], pipelining=False).written == [MAIL]


def test_with_pipelining_every_owed_reply_is_read():
    replies = [reply(550), reply(503), reply(503), reply(250)]
    iterator = iter(replies)
    transaction = Transaction(MAIL, RCPT, pipelining=True)
    transaction.to_write()
    while transaction.awaiting:
        transaction.answer(next(iterator))

    assert list(iterator) == [reply(250)]


def test_a_354_after_a_refused_recipient_is_ended_with_a_lone_dot():
    walked = walk([reply(250), reply(550), reply(354), reply(554)], pipelining=True)

    assert walked.written[-1] == "."
    assert walked.transaction.ended
    assert not walked.transaction.must_close
    assert walked.transaction.refusal.state is State.RCPTTO


def test_a_354_with_an_accepted_recipient_and_a_refused_sender_closes_instead_of_sending_an_empty_message():
    walked = walk([reply(550), reply(250), reply(354)], pipelining=True)

    assert "." not in walked.written
    assert walked.transaction.must_close
    assert walked.transaction.refusal.state is State.MAILFROM


@pytest.mark.parametrize(
    "codes",
    [
        (250, 550, 421),  # it leaves
        (550, 421, 421),
        (250, 550, 354, 421),
        (250, 550, 250),  # no answer to DATA: the replies do not belong to these commands
        (550, 354, 503),
        (250, 550, 354, 354),
    ],
)
def test_whatever_refused_first_a_later_reply_that_cannot_stand_there_or_421_closes(codes):
    transaction = walk(map(reply, codes), pipelining=True).transaction

    assert transaction.must_close
    assert transaction.refusal.code == next(code for code in codes if code >= 500)


CODES = st.sampled_from([250, 251, 354, 421, 450, 451, 499, 500, 550, 554, 599])


REPLIES = st.tuples(*[st.tuples(CODES, st.integers(1, 3), st.booleans())] * 4)
"""Of four replies code, number of lines, and whether there is an enhanced status."""


def spoken(number, code, lines, *, enhanced):
    """Return a reply as octets; no other has the same text."""
    status = f"{code // 100}.{number}.1 " if enhanced else ""
    marks = ["-"] * (lines - 1) + [" "]
    return "".join(f"{code}{mark}{status}reply {number}, line {line}\r\n" for line, mark in enumerate(marks)).encode()


@given(REPLIES, st.data())
def test_segmentation_and_pipelining_do_not_change_the_result(drawn, data):
    """However the reply stream is cut, the pipelined walk ends as the plain one, and reads what it asked for."""
    whole = [spoken(number, code, lines, enhanced=status) for number, (code, lines, status) in enumerate(drawn)]
    plain = walk((ReplyReader().feed(each)[0] for each in whole), pipelining=False).transaction.refusal
    stream = b"".join(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, replies = ReplyReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        replies.extend(reader.feed(stream[start:end]))

    unread = iter(replies)
    walked = walk(unread, pipelining=True)

    def ending(failure):
        return failure and (failure.state, failure.kind, failure.code, failure.status, failure.text)

    assert ending(walked.transaction.refusal) == ending(plain)
    assert len(list(unread)) == 4 - len(walked.written)


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("codes", "refused"),
    [((250, 250), None), ((250, 550), State.RCPTTO), ((550, 503), State.MAILFROM), ((250, 354), State.RCPTTO)],
)
def test_a_dry_run_never_asks_for_data(codes, refused, pipelining):
    walked = walk(map(reply, codes), pipelining=pipelining, data=False)

    assert walked.written == [MAIL, RCPT][: len(walked.written)]
    assert (walked.transaction.refusal and walked.transaction.refusal.state) is refused
    assert walked.transaction.must_close is (354 in codes)
    assert not walked.transaction.ended
