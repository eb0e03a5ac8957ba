"""The relay before the broker knows which frames are about which job, however the stream is cut."""

import itertools
import struct

from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame as codec
from pamqp.commands import Basic, Connection
from pamqp.header import ContentHeader

from mailq.core.broker.messages import Publication
from mailq.edges.amqp.frames import PROTOCOL_HEADER, publish_frames, settle_frame
from mailq.torture.frames import AmqpTap

IDS = [f"tx00001-{index:02d}" for index in range(4)]
OPEN = codec.marshal(Connection.Open("/"), 0)


def publication(identity, *, named=True):
    body = identity.encode() + b"x" * 5000
    message_id = identity if named else "digest"
    return b"".join(publish_frames(Publication("mailq", "success", body, message_id=message_id), 4096))


def delivery(identity, tag, *, named=True):
    deliver = codec.marshal(Basic.Deliver("mailq", tag, False, "", "outbox"), 1)
    body = identity.encode()
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(message_id=identity if named else None))
    return deliver + codec.marshal(header, 1) + b"\x03\x00\x01" + struct.pack(">I", len(body)) + body + b"\xce"


def confirm(tag, *, multiple=False):
    return codec.marshal(Basic.Ack(tag, multiple), 1)


def passed(way, stream, cuts):
    """What a tap makes of a stream cut at these places: all octets, and the steps in order."""
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    pieces = [piece for at, end in itertools.pairwise(edges) for piece in way(stream[at:end])]
    return b"".join(piece.octets for piece in pieces), [step for piece in pieces for step in piece.steps]


CUTS = st.lists(st.integers(0, 30_000), max_size=20)


@given(cuts=CUTS, named=st.booleans())
def test_publications_and_their_confirms(cuts, named):
    tap = AmqpTap()
    sent = PROTOCOL_HEADER + OPEN + b"".join(publication(identity, named=named) for identity in IDS)
    assert passed(tap.up, sent, cuts) == (sent, [("publish", each) for each in IDS])
    answers = confirm(2) + confirm(3, multiple=True) + confirm(4)
    expected = [("confirm", IDS[index]) for index in (1, 0, 2, 3)]
    assert passed(tap.down, answers, cuts) == (answers, expected)


@given(cuts=CUTS, named=st.booleans())
def test_deliveries_and_their_acknowledgements(cuts, named):
    tap = AmqpTap()
    given_out = b"".join(delivery(identity, tag, named=named) for tag, identity in enumerate(IDS, 1))
    assert passed(tap.down, given_out, cuts) == (given_out, [])
    settled = PROTOCOL_HEADER + settle_frame(3, ack=True) + settle_frame(2, ack=True, multiple=True)
    expected = [("ack", IDS[index]) for index in (2, 0, 1)]
    assert passed(tap.up, settled, cuts) == (settled, expected)


def test_a_publication_is_held_together():
    """Up to the header nothing of it is passed on: who holds the step holds the whole publication."""
    tap = AmqpTap()
    tap_pieces = list(tap.up(PROTOCOL_HEADER + publication(IDS[0])))
    assert [piece.steps for piece in tap_pieces[:2]] == [(), (("publish", IDS[0]),)]
    assert tap_pieces[1].octets.count(b"success") == 1


def test_what_has_neither_id_nor_body_is_not_held():
    empty = b"".join(publish_frames(Publication("", "nowhere", b""), 4096))
    assert passed(AmqpTap().up, PROTOCOL_HEADER + empty, []) == (PROTOCOL_HEADER + empty, [("publish", "")])
