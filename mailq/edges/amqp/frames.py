"""Frames in and out, without I/O (AMQP 0-9-1 section 4.2).

`FrameReader` cuts the byte stream into events, however it was segmented; deliveries, returns and
confirms, of which there are many, are taken apart by hand, the rest by pamqp. The functions build
what is sent just as often. Octets from the peer are checked against the frame size that was agreed;
what breaks the protocol raises `FrameError`, and the connection is over.
"""

import struct
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import frame as codec
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException

from mailq.core.broker.application_headers import FIRST_ROUND
from mailq.core.broker.messages import Application, Consumed, Publication
from mailq.edges.amqp.field_tables import MAX_SHORT, decode_table, encode_table, short, text

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

MAX_FRAME = 131_072
"""Largest frame that is offered, in octets, all of it counted; RabbitMQ's own default."""

MAX_HEADER = 16 * 1024 * 1024
"""Largest content header that is read: RabbitMQ adds headers of its own to a message's, whatever was agreed."""

SPARE = 1024
"""Octets of a frame that are left to the headers that RabbitMQ adds on the way."""

MAX_BODY = 512 * 1024 * 1024
"""Largest body that is read; RabbitMQ's own absolute limit."""

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_END = 0xCE
_OVERHEAD = 8
_DELIVER, _RETURN, _ACK, _NACK, _REJECT = 0x003C003C, 0x003C0032, 0x003C0050, 0x003C0078, 0x003C005A

_FRAME = struct.Struct(">BHI")
_KEY = struct.Struct(">I")
_TAG = struct.Struct(">QB")
_CONTENT = struct.Struct(">HHQH")
_CONTENT_FRAME = struct.Struct(">BHIHHQH")

_FOR_APPLICATIONS = 0x0728
"""Flags of the properties in `Application`, and of the expiration, which stands among them."""

_REST = (
    *((0x0400, "correlation_id"), (0x0200, "reply_to"), (0x0100, "expiration"), (0x0080, "message_id")),
    *((0x0040, "timestamp"), (0x0020, "type"), (0x0010, "user_id"), (0x0008, "app_id")),
)
"""Properties after the priority; all but the timestamp are short strings."""

# One acknowledgement: frame of 13 octets on channel 1, method, tag, bits, end.
_SETTLE = struct.Struct(">BHIIQBB")


class FrameError(Exception):
    """The peer does not speak AMQP 0-9-1 as agreed."""


class Confirm(NamedTuple):
    """The broker took (ack) or refused a publication, or all up to that tag (multiple)."""

    tag: int
    multiple: bool
    ack: bool


class Returned(NamedTuple):
    """A mandatory publication that reached no queue."""

    text: str
    exchange: str
    routing_key: str
    body: bytes


Event = Consumed | Confirm | Returned | Frame


class FrameReader:
    """Cuts received bytes into events, however they were split or glued on the way."""

    __slots__ = ("_chunks", "_events", "_method", "_missing", "_properties", "_rest", "frame_max")

    def __init__(self) -> None:
        self.frame_max = MAX_FRAME
        self._rest = b""
        self._events: list[Event] = []
        self._method: tuple[Any, ...] | None = None
        self._properties: dict[str, Any] = {}
        self._missing = 0
        self._chunks: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that are complete now.

        Raises:
            FrameError: the stream is not AMQP 0-9-1; the reader must not be fed again.
        """
        if self._rest:
            data = self._rest + data
        events: list[Event] = []
        self._events = events
        at, end, limit = 0, len(data), self.frame_max - _OVERHEAD
        try:
            while end - at >= _OVERHEAD:
                kind, _, size = _FRAME.unpack_from(data, at)
                if size > (MAX_HEADER if kind == _HEADER else limit):
                    raise FrameError(f"frame of type {kind} with {size} octets, agreed are {limit}")
                stop = at + 7 + size
                if stop >= end:
                    break
                if data[stop] != _END:
                    raise FrameError("frame without its end octet")
                self._frame(kind, data, at, stop)
                at = stop + 1
        except (struct.error, IndexError, PAMQPException, ValueError) as error:
            raise FrameError(f"malformed frame: {error}") from error
        self._rest = data[at:]
        return events

    def _frame(self, kind: int, data: bytes, at: int, stop: int) -> None:
        if kind == _METHOD:
            if self._method is not None:
                raise FrameError("method inside of a message")
            self._take_method(data, at, stop)
        elif kind == _HEADER:
            self._take_header(data, at + 7, stop)
        elif kind == _BODY:
            self._body(data[at + 7 : stop])
        elif kind != _HEARTBEAT:
            raise FrameError(f"frame of type {kind}")

    def _take_method(self, data: bytes, at: int, stop: int) -> None:
        start = at + 7
        (key,) = _KEY.unpack_from(data, start)
        if key == _DELIVER:
            # Consumer tag; delivery tag; redelivered; exchange and routing key, which nobody asks for.
            self._method = (_DELIVER, *_TAG.unpack_from(data, start + 5 + data[start + 4]))
        elif key in (_ACK, _NACK):
            tag, bits = _TAG.unpack_from(data, start + 4)
            self._events.append(Confirm(tag, bool(bits & 1), key == _ACK))
        elif key == _RETURN:
            reason, exchange, routing_key = _short_strings(data, start + 6, 3)
            self._method = (_RETURN, reason, exchange, routing_key)
        else:
            frame = codec.unmarshal(data[at : stop + 1])[2]
            if isinstance(frame, Frame):
                self._events.append(frame)

    def _take_header(self, data: bytes, at: int, stop: int) -> None:
        if self._method is None or self._missing:
            raise FrameError("content header without a method")
        _, _, size, flags = _CONTENT.unpack_from(data, at)
        if size > MAX_BODY:
            raise FrameError(f"message of {size} octets")
        self._properties = _read_properties(data[at + 14 : stop], flags) if self._method[0] == _DELIVER else {}
        self._missing = size
        if not size:
            self._complete(b"")

    def _body(self, chunk: bytes) -> None:
        self._missing -= len(chunk)
        if self._missing < 0 or self._method is None:
            raise FrameError("more body than announced")
        if self._missing:
            self._chunks.append(chunk)
        elif self._chunks:
            self._chunks.append(chunk)
            body = b"".join(self._chunks)
            self._chunks = []
            self._complete(body)
        else:
            self._complete(chunk)

    def _complete(self, body: bytes) -> None:
        method, self._method = self._method, None
        assert method is not None
        if method[0] == _DELIVER:
            self._events.append(Consumed(body, method[1], bool(method[2] & 1), **self._properties))
        else:
            self._events.append(Returned(method[1], method[2], method[3], body))


def _short_strings(data: bytes, at: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        stop = at + 1 + data[at]
        found.append(text(data[at + 1 : stop]))
        at = stop
    return found


def _read_properties(data: bytes, flags: int) -> dict[str, Any]:
    """Return those basic properties that `Consumed` has; the others are stepped over."""
    found: dict[str, Any] = {}
    at = 0
    if flags & 0x8000:  # content-type
        at += 1 + data[at]
    if flags & 0x4000:
        stop = at + 1 + data[at]
        found["content_encoding"] = text(data[at + 1 : stop])
        at = stop
    if flags & 0x2000:
        stop = at + 4 + _KEY.unpack_from(data, at)[0]
        found["headers"] = decode_table(data[at + 4 : stop])
        at = stop
    if flags & 0x1000:  # delivery-mode
        at += 1
    if flags & 0x0800:
        found["priority"] = data[at]
        at += 1
    if flags & _FOR_APPLICATIONS:
        _read_rest(data, at, flags, found)
    elif flags & 0x0080:
        found["message_id"] = text(data[at + 1 : at + 1 + data[at]])
    return found


def _read_rest(data: bytes, at: int, flags: int, into: dict[str, Any]) -> None:
    """Read what few messages have: the properties for applications, and the message id among them."""
    rest: dict[str, str] = {}
    for flag, name in _REST:
        if not flags & flag:
            continue
        if name == "timestamp":
            at += 8
            continue
        stop = at + 1 + data[at]
        rest[name] = text(data[at + 1 : stop])
        at = stop
    if "message_id" in rest:
        into["message_id"] = rest["message_id"]
    known = {name: rest[name] for name in Application._fields if name in rest}
    if known:
        into["application"] = Application(**known)


def publish_frames(publication: Publication, frame_max: int) -> list[bytes]:
    """Return the octets of basic.publish with header and body, persistent, on channel 1.

    A message id longer than AMQP can carry (255 octets) is left out.

    Raises:
        ValueError: exchange, routing key or another property is too long, or all of them for one frame.
        TypeError: the headers have a value that AMQP has no type for.
    """
    body = publication.body
    properties, flags = _write_properties(publication)
    room = frame_max - _OVERHEAD
    if len(properties) > properties_room(frame_max):
        raise ValueError(f"properties and headers of {len(properties)} octets do not fit into a frame")
    header = _CONTENT_FRAME.pack(_HEADER, 1, _CONTENT.size + len(properties), 60, 0, len(body), flags)
    parts = [_publish_method(publication.exchange, publication.routing_key, publication.mandatory)]
    parts.append(b"".join((header, properties, b"\xce")))
    parts += [_frame(_BODY, body[at : at + room]) for at in range(0, len(body), room)]
    return parts


def properties_room(frame_max: int) -> int:
    """Return how many octets of properties a content header takes: AMQP has no second frame for it."""
    return frame_max - _OVERHEAD - _CONTENT.size - SPARE


def bare_size(publication: Publication) -> int:
    """Return the octets of a publication's properties without any headers; errors as in `publish_frames`."""
    return len(_write_properties(publication._replace(headers=None))[0])


def settle_frame(tag: int, *, ack: bool, multiple: bool = False) -> bytes:
    """Return basic.ack, or basic.nack with requeue, on channel 1."""
    bits = int(multiple) if ack else int(multiple) | 2
    return _SETTLE.pack(_METHOD, 1, 13, _ACK if ack else _NACK, tag, bits, _END)


def reject_frame(tag: int) -> bytes:
    """Return basic.reject with requeue on channel 1."""
    return _SETTLE.pack(_METHOD, 1, 13, _REJECT, tag, 1, _END)


@lru_cache(maxsize=512)
def _publish_method(exchange: str, routing_key: str, mandatory: bool) -> bytes:  # noqa: FBT001 - lru_cache keys are cheapest by position
    return _frame(_METHOD, b"\x00\x3c\x00\x28\x00\x00" + short(exchange) + short(routing_key) + bytes((mandatory,)))


_content_type = lru_cache(maxsize=64)(short)
_FIRST_ROUND = encode_table(FIRST_ROUND)


def _write_properties(publication: Publication) -> tuple[bytes, int]:
    """Return the property list and its flags, delivery mode 2 always."""
    flags, parts = 0x1000, []
    if publication.content_type is not None:
        flags |= 0x8000
        parts.append(_content_type(publication.content_type))
    if publication.content_encoding is not None:
        flags |= 0x4000
        parts.append(short(publication.content_encoding))
    headers = publication.headers
    if headers:
        flags |= 0x2000
        parts.append(_FIRST_ROUND if headers is FIRST_ROUND else encode_table(headers))
    parts.append(b"\x02")
    if publication.priority is not None:
        flags |= 0x0800
        parts.append(bytes((publication.priority,)))
    application = publication.application
    if application is not None:
        flags |= _write_short(parts, 0x0400, application.correlation_id)
        flags |= _write_short(parts, 0x0200, application.reply_to)
    if publication.message_id is not None:
        raw = publication.message_id.encode()
        if len(raw) <= MAX_SHORT:
            flags |= 0x0080
            parts.append(bytes((len(raw),)) + raw)
    if application is not None:
        flags |= _write_short(parts, 0x0020, application.type)
        flags |= _write_short(parts, 0x0008, application.app_id)
    return b"".join(parts), flags


def _write_short(parts: list[bytes], flag: int, value: str | None) -> int:
    if value is None:
        return 0
    parts.append(short(value))
    return flag


def _frame(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, 1, len(payload)) + payload + b"\xce"
