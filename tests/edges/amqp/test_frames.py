"""The frame reader and writers against pamqp's, whatever the segmentation, whatever the octets."""

import contextlib
import struct
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, decode, encode, frame, header, heartbeat

from mailq.core.broker.messages import Application, Consumed, Publication
from mailq.edges.amqp.field_tables import MAX_DEPTH, decode_table, encode_table, text
from mailq.edges.amqp.frames import (
    MAX_BODY,
    Confirm,
    FrameError,
    FrameReader,
    Returned,
    publish_frames,
    reject_frame,
    settle_frame,
)

DELIVER = commands.Basic.Deliver("mailq", 1, False, "", "outbox")

names = st.text(st.characters(codec="utf-8"), max_size=60)
scalars = st.one_of(
    names,
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    st.binary(max_size=20),
    st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001 - the timezone is beside it
        lambda moment: moment.replace(microsecond=0)
    ),
    st.builds(
        lambda digits, scale: Decimal(digits).scaleb(-scale), st.integers(-(1 << 30), 1 << 30), st.integers(0, 9)
    ),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=10
)
tables = st.dictionaries(names, values, max_size=5)


maybe = st.none() | names
applications = st.builds(Application, maybe, maybe, maybe, maybe).filter(any)


def properties(draw_headers=tables):
    return st.fixed_dictionaries(
        {},
        optional={
            "message_id": names,
            "content_encoding": names,
            "priority": st.integers(0, 255),
            "headers": draw_headers,
            "application": applications,
        },
    )


def content(method, payload, props=None, chunk=7):
    """Return the frames of a method with content, its body in chunks of a few octets."""
    parts = [frame.marshal(method, 1), content_header(len(payload), props or {})]
    parts += [frame.marshal(body.ContentBody(payload[at : at + chunk]), 1) for at in range(0, len(payload), chunk)]
    return b"".join(parts)


def content_header(size, props):
    """Return a content header; pamqp cannot write empty properties, and not all tables that exist."""
    props = dict(props)
    application = props.pop("application", None)
    fields = {"content_type": "application/json", "delivery_mode": 2} | props
    if application is not None:
        fields |= {name: value for name, value in application._asdict().items() if value is not None}
        fields |= {"expiration": "60000", "timestamp": datetime(2026, 1, 1, tzinfo=UTC), "user_id": "u"}
    flags, parts = 0, []
    for flag, name, encoded in (
        (0x8000, "content_type", encode.short_string),
        (0x4000, "content_encoding", encode.short_string),
        (0x2000, "headers", encode_table),
        (0x1000, "delivery_mode", encode.octet),
        (0x0800, "priority", encode.octet),
        (0x0400, "correlation_id", encode.short_string),
        (0x0200, "reply_to", encode.short_string),
        (0x0100, "expiration", encode.short_string),
        (0x0080, "message_id", encode.short_string),
        (0x0040, "timestamp", encode.timestamp),
        (0x0020, "type", encode.short_string),
        (0x0010, "user_id", encode.short_string),
        (0x0008, "app_id", encode.short_string),
    ):
        if name in fields:
            flags |= flag
            parts.append(encoded(fields[name]))
    payload = b"\x00\x3c\x00\x00" + size.to_bytes(8) + flags.to_bytes(2) + b"".join(parts)
    return b"\x02\x00\x01" + len(payload).to_bytes(4) + payload + b"\xce"


@st.composite
def recorded(draw):
    """Return a byte stream and the events that it means."""
    stream, events = b"", []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["deliver", "return", "ack", "nack", "heartbeat", "method"]))
        payload = draw(st.binary(max_size=40))
        tag, flag = draw(st.integers(0, (1 << 63) - 1)), draw(st.booleans())
        if kind == "deliver":
            props = draw(properties())
            stream += content(commands.Basic.Deliver("mailq", tag, flag, "", "outbox"), payload, props)
            events.append(Consumed(payload, tag, flag, **props))
        elif kind == "return":
            stream += content(commands.Basic.Return(312, "NO_ROUTE", "mailq", "key"), payload)
            events.append(Returned("NO_ROUTE", "mailq", "key", payload))
        elif kind == "ack":
            stream += frame.marshal(commands.Basic.Ack(tag, flag), 1)
            events.append(Confirm(tag, flag, True))
        elif kind == "nack":
            stream += frame.marshal(commands.Basic.Nack(tag, flag, False), 1)
            events.append(Confirm(tag, flag, False))
        elif kind == "heartbeat":
            stream += frame.marshal(heartbeat.Heartbeat(), 0)
        else:
            stream += frame.marshal(commands.Connection.Blocked("low on memory"), 0)
            events.append("low on memory")
    return stream, events


def read(reader, data):
    return [getattr(event, "reason", event) for event in reader.feed(data)]


@given(recorded(), st.data())
def test_any_segmentation_gives_the_same_events(stream_and_events, data):
    stream, events = stream_and_events
    assert read(FrameReader(), stream) == events
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader, found = FrameReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += read(reader, stream[start:stop])
    assert found == events


@given(recorded())
def test_octet_by_octet(stream_and_events):
    stream, events = stream_and_events
    reader = FrameReader()
    assert [event for octet in stream for event in read(reader, bytes((octet,)))] == events


@given(recorded(), st.data())
def test_damaged_streams_are_frame_errors_or_other_events(stream_and_events, data):
    stream = bytearray(stream_and_events[0])
    for _ in range(data.draw(st.integers(1, 5))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        FrameReader().feed(bytes(stream))


@given(st.binary(max_size=300))
def test_noise_is_a_frame_error_or_nothing_yet(noise):
    with contextlib.suppress(FrameError):
        FrameReader().feed(noise)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x01\x00\x01\x00\x02\x00\x00", "octets, agreed"),
        (b"\x08\x00\x00\x00\x00\x00\x00\xcd", "end octet"),
        (b"\x09\x00\x00\x00\x00\x00\x00\xce", "type 9"),
        (frame.marshal(body.ContentBody(b"x"), 1), "more body"),
        (frame.marshal(header.ContentHeader(0, 5), 1), "without a method"),
        (frame.marshal(DELIVER, 1) * 2, "inside of a message"),
        (
            frame.marshal(DELIVER, 1) + frame.marshal(header.ContentHeader(0, MAX_BODY + 1), 1),
            "message of",
        ),
        (
            content(DELIVER, b"12345")[:-13] + frame.marshal(body.ContentBody(b"123456"), 1),
            "more",
        ),
    ],
)
def test_what_breaks_the_protocol_is_said(stream, reason):
    with pytest.raises(FrameError, match=reason):
        FrameReader().feed(stream + b"\x00" * 8)


@given(tables)
def test_tables_survive_the_way_there_and_back(table):
    assert decode_table(encode_table(table)[4:]) == table


@given(
    st.dictionaries(names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=4)
)
def test_pamqp_reads_what_is_encoded(table):
    raw = encode_table(table)
    assert decode.field_table(raw) == (len(raw), table)


@given(st.binary(max_size=200))
def test_noise_decodes_to_some_table_that_can_be_encoded(noise):
    there_and_back(noise)


def there_and_back(raw):
    """Hold decoding and encoding to each other, as text: NaN differs from itself, and 1.0 is equal to 1."""
    found = decode_table(raw)
    encoded = encode_table(found)
    assert int.from_bytes(encoded[:4]) == len(encoded) - 4
    assert repr(decode_table(encoded[4:])) == repr(found)
    return found


def bounds(size, *, signed=True):
    """Return integers of so many octets as the wire has them, the bounds often."""
    low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, (1 << 8 * size) - 1)
    edges = st.sampled_from([low, low + 1, -1 if signed else 1, 0, high - 1, high])
    return (edges | st.integers(low, high)).map(lambda number: number.to_bytes(size, signed=signed))


def long(kind, payload):
    return payload.map(lambda raw: kind + len(raw).to_bytes(4) + raw)


def wire_table(inner):
    """Return the octets of a table whose names may be empty, as long as can be, or no UTF-8."""
    name = st.sampled_from([b"", b"CC", b"\xc3", b"n" * 255, "é".encode() * 127]) | st.binary(max_size=20)
    field = st.tuples(name, inner).map(lambda pair: bytes((len(pair[0]),)) + pair[0] + pair[1])
    return st.lists(field, max_size=4).map(b"".join)


TIMES = [0, 253_402_300_799, 253_402_300_800, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
FLOATS = [b"\x7f\xc0\x00\x00", b"\xff\x80\x00\x00", b"\x80\x00\x00\x00", b"\x00\x00\x00\x01"]
wire_scalars = st.one_of(
    *(bounds(size).map(kind.__add__) for kind, size in ((b"b", 1), (b"s", 2), (b"I", 4), (b"l", 8), (b"L", 8))),
    *(bounds(size, signed=False).map(kind.__add__) for kind, size in ((b"t", 1), (b"B", 1), (b"u", 2), (b"i", 4))),
    (st.sampled_from(FLOATS) | st.binary(min_size=4, max_size=4)).map(b"f".__add__),
    (st.sampled_from([raw + bytes(4) for raw in FLOATS]) | st.binary(min_size=8, max_size=8)).map(b"d".__add__),
    (st.sampled_from(TIMES) | st.integers(0, (1 << 64) - 1)).map(lambda moment: b"T" + moment.to_bytes(8)),
    st.tuples(bounds(1, signed=False), bounds(4)).map(lambda pair: b"D" + pair[0] + pair[1]),
    long(b"S", st.binary(max_size=30)),
    long(b"x", st.binary(max_size=30)),
    st.sampled_from([b"V", b"\x00"]),
)
wire_values = st.recursive(
    wire_scalars,
    lambda inner: long(b"A", st.lists(inner, max_size=4).map(b"".join)) | long(b"F", wire_table(inner)),
    max_leaves=12,
)


@given(wire_table(wire_values))
def test_whatever_is_decoded_of_any_type_and_bound_is_encoded_and_decoded_to_the_same(raw):
    there_and_back(raw)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_for_which_rabbitmq_ends_the_channel_are_neither_read_nor_written(number):
    raw = struct.pack(">d", number)
    assert decode_table(b"\x01nd" + raw + b"\x01mt\x01") == {"n": None, "m": True}
    with pytest.raises(ValueError, match="not finite"):
        encode_table({"n": number})


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_what_is_nested_too_deep_or_is_huge_goes_there_and_back(kind):
    value = b"t\x01"
    for _ in range(MAX_DEPTH + 3):
        inside = b"\x01d" + value if kind == b"F" else value
        value = kind + len(inside).to_bytes(4) + inside
    assert list(there_and_back(b"\x01n" + value)) == ["n"]
    assert len(there_and_back(b"".join(b"\x06%06dI\x80\x00\x00\x00" % number for number in range(20_000)))) == 20_000


@pytest.mark.parametrize("digits", [-(1 << 31), (1 << 31) - 1, 0, -1])
@pytest.mark.parametrize("scale", [0, 1, 28, 255])
def test_decimals_at_their_bounds_go_there_and_back(digits, scale):
    found = there_and_back(b"\x01nD" + bytes((scale,)) + digits.to_bytes(4, signed=True))
    assert found["n"] == Decimal(digits).scaleb(-scale)


@given(tables, st.data())
def test_a_cut_table_keeps_its_first_fields(table, data):
    raw = encode_table(table)[4:]
    found = decode_table(raw[: data.draw(st.integers(0, len(raw)))])
    assert list(found.items()) == list(table.items())[: len(found)]


def test_nesting_is_bounded():
    deep: dict = {}
    for _ in range(MAX_DEPTH + 5):
        deep = {"d": deep, "beside": 1}
    found, levels = decode_table(encode_table(deep)[4:]), 0
    while found:
        assert found["beside"] == 1
        found, levels = found["d"], levels + 1
    assert levels == MAX_DEPTH + 1


def test_text_that_is_not_utf_8_grows_no_longer():
    assert text(b"a\xffb\xc3") == "a?b?"
    assert text("grüße".encode()) == "grüße"


@given(properties(), st.binary(max_size=9000), names, names, st.booleans(), st.integers(50, 100))
def test_pamqp_reads_what_is_published(props, payload, exchange, key, mandatory, frame_max):
    props = props | {"headers": None}
    stream = b"".join(
        publish_frames(Publication(exchange, key, payload, mandatory=mandatory, **props), 4096 + frame_max)
    )
    size, channel, method = frame.unmarshal(stream)
    assert (channel, method.exchange, method.routing_key, method.mandatory) == (1, exchange, key, mandatory)
    stream = stream[size:]
    size, channel, head = frame.unmarshal(stream)
    assert (channel, head.body_size, head.properties.delivery_mode) == (1, len(payload), 2)
    for name in ("content_encoding", "priority", "message_id"):
        assert getattr(head.properties, name) == props.get(name)
    for name, value in (props.get("application") or Application())._asdict().items():
        assert getattr(head.properties, {"type": "message_type"}.get(name, name)) == value
    stream, found = stream[size:], b""
    while stream:
        size, channel, part = frame.unmarshal(stream)
        assert size <= 4096 + frame_max
        found, stream = found + part.value, stream[size:]
    assert found == payload


@given(st.integers(0, (1 << 64) - 1), st.booleans())
def test_pamqp_reads_what_is_settled(tag, multiple):
    ack = frame.unmarshal(settle_frame(tag, ack=True, multiple=multiple))[2]
    assert isinstance(ack, commands.Basic.Ack)
    assert (ack.delivery_tag % (1 << 64), ack.multiple) == (tag, multiple)
    nack = frame.unmarshal(settle_frame(tag, ack=False, multiple=multiple))[2]
    assert isinstance(nack, commands.Basic.Nack)
    assert (nack.delivery_tag % (1 << 64), nack.multiple, nack.requeue) == (tag, multiple, True)
    reject = frame.unmarshal(reject_frame(tag))[2]
    assert isinstance(reject, commands.Basic.Reject)
    assert (reject.delivery_tag % (1 << 64), reject.requeue) == (tag, True)
