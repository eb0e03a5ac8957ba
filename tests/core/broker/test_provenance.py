"""By what key a job is known, and which headers are believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailq.core.broker.messages import Application, Consumed, Publication
from mailq.core.broker.provenance import HEADER, Outbox, Provenance

OUTBOX = Outbox("/", "outbox", "secret")
BODY = b'{"recipient": "b@b.test", "mime": "' + b"x" * 5000 + b'"}'
JOB = Consumed(BODY, 1, message_id="m")
MIDDLE = BODY[:2500] + b"y" + BODY[2501:]


def back(provenance, outbox=OUTBOX, *, body=BODY, message_id="m"):
    """Return a message as it comes back to the outbox after mailq has sent it there."""
    publication = outbox.signed(
        Publication("", "q", body, message_id=message_id, headers={"mine": 1, HEADER: provenance})
    )
    return Consumed(publication.body, 2, message_id=publication.message_id, headers=publication.headers)


def key(consumed, outbox=OUTBOX, attempt=1):
    return outbox.key(outbox.read(consumed), attempt)


def test_a_publication_without_a_mark_is_known_by_all_of_its_content_and_by_its_place():
    others = [
        JOB._replace(body=MIDDLE),
        JOB._replace(message_id="n"),
        JOB._replace(message_id=None),
        JOB._replace(message_id="m" + BODY[:1].decode(), body=BODY[1:]),
    ]
    keys = {key(each).digest for each in (JOB, *others)}
    keys |= {key(JOB, Outbox(*place, "secret")).digest for place in [("b", "outbox"), ("/", "other"), ("/o", "utbox")]}
    assert len(keys) == 1 + len(others) + 3
    assert key(JOB._replace(tag=7, redelivered=True, headers={"x-delivery-count": 1})) == key(JOB)
    assert key(JOB, Outbox("/", "outbox", "other")) == key(JOB)
    assert not key(JOB).marked


def test_a_marked_publication_is_known_by_mark_attempt_and_place():
    first, second = [back(Provenance(mark=mark)) for mark in "ab"]
    assert key(first).marked
    keys = {key(first, attempt=1).digest, key(first, attempt=2).digest, key(second).digest}
    elsewhere = Outbox("b", "outbox", "secret")
    keys.add(key(back(Provenance(mark="a"), elsewhere), elsewhere).digest)
    assert len(keys) == 4
    assert key(back(Provenance(mark="a"), body=MIDDLE)) == key(first)


@given(st.text(alphabet="0123456789abcdef-", max_size=40), st.booleans(), st.booleans())
def test_what_mailq_wrote_is_read(mark, returned, requeued):
    found = OUTBOX.read(back(Provenance(mark=mark, returned=returned, requeued=requeued)))
    assert found[1:] == (mark, returned, requeued)


def test_what_says_nothing_is_no_header():
    assert back(Provenance()).headers == {"mine": 1}


VALID = back(Provenance(mark="m", returned=True))


@pytest.mark.parametrize(
    "forged",
    [
        VALID._replace(body=MIDDLE),
        VALID._replace(message_id="n"),
        VALID._replace(headers={HEADER: VALID.headers[HEADER].replace("m;", "n;", 1)}),
        VALID._replace(headers={HEADER: VALID.headers[HEADER].replace("returned", "requeued", 1)}),
        back(Provenance(mark="m"), Outbox("b", "outbox", "secret")),
        back(Provenance(mark="m"), Outbox("/", "outbox", "another")),
        *(
            JOB._replace(headers={HEADER: each})
            for each in ("", ";;", "m;returned;", "m;;\u00e9", 1, None, ["m;;"], b"m")
        ),
        JOB._replace(headers={"x-mailq-returned": 1, "x-mailq-requeued": 1, "x-mailq-unnamed": "m"}),
    ],
)
def test_a_header_that_mailq_did_not_write_for_this_very_message_is_none(forged):
    assert OUTBOX.read(forged)[1:] == ("", False, False)
    own = {name: value for name, value in forged.headers.items() if name != HEADER}
    assert key(forged) == key(forged._replace(headers=own))


@pytest.mark.parametrize(
    "other",
    [
        {"headers": {"traceparent": "2"}},
        {"headers": {}},
        {"application": Application(correlation_id="c")},
        {"message_id": "other"},
        {"body": b"other"},
    ],
)
def test_publications_that_differ_in_anything_of_the_producers_have_keys_of_their_own(other):
    outbox = Outbox("/", "outbox", "secret")
    first = Consumed(b"body", 1, message_id="id", headers={"traceparent": "1"})
    assert outbox.key(outbox.read(first), 1) != outbox.key(outbox.read(first._replace(**other)), 1)


@pytest.mark.parametrize("own", [{}, {"traceparent": "1"}])
def test_headers_that_the_broker_adds_change_no_key(own):
    outbox = Outbox("/", "outbox", "secret")
    first = Consumed(b"body", 1, headers=own)
    again = first._replace(tag=2, redelivered=True, headers=own | {"x-delivery-count": 1})
    assert outbox.key(outbox.read(first), 1) == outbox.key(outbox.read(again), 1)
