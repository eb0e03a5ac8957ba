"""What the relay before the broker knows of AMQP 0-9-1: frames, and which job they are about.

A publication's frames are passed on together with the point `publish`; a confirm is the point `confirm` of all
publications that it covers, an acknowledgement the point `ack` of all deliveries (section 4.2 of the
specification; publisher confirms are RabbitMQ's extension). Jobs are known by the message id in the content header,
or else by the envelope, with which the body begins.
"""

import re
import struct
from collections.abc import Iterator

from mailq.edges.amqp.frames import PROTOCOL_HEADER
from mailq.torture.relay import Piece

_FRAME = struct.Struct(">BHI")
_TAG = struct.Struct(">QB")
_METHOD, _HEADER, _BODY = 1, 2, 3
_PUBLISH, _DELIVER, _ACK = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x50"
_ID = re.compile(rb"[th]x\d{5}-\d{2}g?")


class _Splitter:
    """Cuts octets into whole frames: type, payload, and the frame itself."""

    def __init__(self, preface: int) -> None:
        self._rest = b""
        self._preface = preface

    def frames(self, octets: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        data = self._rest + octets
        at = 0
        if self._preface and len(data) >= self._preface:
            at, self._preface = self._preface, 0
            yield 0, b"", data[:at]
        while not self._preface and len(data) - at >= _FRAME.size:
            kind, _, size = _FRAME.unpack_from(data, at)
            end = at + _FRAME.size + size + 1
            if len(data) < end:
                break
            yield kind, data[at + _FRAME.size : end - 1], data[at:end]
            at = end
        self._rest = data[at:]


class AmqpTap:
    """One AMQP connection of a worker."""

    def __init__(self) -> None:
        self._from_worker = _Splitter(len(PROTOCOL_HEADER))
        self._from_broker = _Splitter(0)
        self._publication = b""
        self._published = 0
        self._unconfirmed: dict[int, str] = {}
        self._delivery = 0
        self._unacked: dict[int, str] = {}

    def up(self, octets: bytes) -> Iterator[Piece]:
        """Return the worker's frames; a publication is held together until its id is known."""
        for kind, payload, frame in self._from_worker.frames(octets):
            if kind == _METHOD and payload.startswith(_PUBLISH):
                self._publication = frame
                self._published += 1
            elif self._publication and kind in (_HEADER, _BODY):
                self._publication += frame
                identity = _identity(payload)
                if identity or kind == _BODY or _is_empty(payload):
                    self._unconfirmed[self._published] = identity
                    publication, self._publication = self._publication, b""
                    yield Piece(publication, (("publish", identity),))
            elif kind == _METHOD and payload.startswith(_ACK):
                yield Piece(frame, [("ack", identity) for identity in _covered(payload, self._unacked)])
            else:
                yield Piece(frame)

    def down(self, octets: bytes) -> Iterator[Piece]:
        """Return the broker's frames."""
        for kind, payload, frame in self._from_broker.frames(octets):
            steps: list[tuple[str, str]] = []
            if kind == _METHOD and payload.startswith(_DELIVER):
                self._delivery = _TAG.unpack_from(payload, 5 + payload[4])[0]
            elif kind in (_HEADER, _BODY) and self._delivery:
                identity = self._unacked[self._delivery] = _identity(payload)
                if identity or kind == _BODY or _is_empty(payload):
                    self._delivery = 0
            elif kind == _METHOD and payload.startswith(_ACK):
                steps = [("confirm", identity) for identity in _covered(payload, self._unconfirmed)]
            yield Piece(frame, steps)


def _identity(header: bytes) -> str:
    found = _ID.search(header)
    return found[0].decode() if found else ""


def _is_empty(header: bytes) -> bool:
    """Tell whether no body follows a content header (section 4.2.6.1 of the specification)."""
    return not any(header[4:12])


def _covered(payload: bytes, waiting: dict[int, str]) -> list[str]:
    """Take out and return the ids that an ack is about: one tag, or all up to it."""
    tag, multiple = _TAG.unpack_from(payload, 4)
    tags = [each for each in waiting if each <= tag] if multiple & 1 else [tag]
    return [waiting.pop(each) for each in tags if each in waiting]
