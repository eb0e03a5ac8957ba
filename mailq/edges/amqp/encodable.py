"""A publication that AMQP cannot carry as it is, without the parts that are in the way.

A content header is one frame (AMQP 0-9-1 section 4.2.6.1), and RabbitMQ ends the connection of a publisher whose frame
is longer than agreed. Headers of producers may be that large, and a value may be out of AMQP's range. Such headers stay
behind, the largest first and mailq's own last, and a header of mailq's names them.
"""

import struct
from collections.abc import Mapping
from typing import Any

from mailq.core.broker.application_headers import DROPPED, MOST_DROPPED
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.field_tables import encode_table
from mailq.edges.amqp.frames import bare_size, properties_room

UNENCODABLE = (ValueError, TypeError, OverflowError, RecursionError, struct.error)
"""The exceptions of encoding; UnicodeEncodeError, of half a surrogate pair, is a ValueError."""

_NAMED = 10
_NOTE = len(DROPPED) + 8 + 4 * MOST_DROPPED
"""Octets of the header that names what was left out, at most."""


def fitted(publication: Publication, frame_max: int) -> tuple[Publication, str]:
    """Return the publication without what cannot be carried, and the names of the headers left out, as text.

    A message id or property for applications that cannot be encoded is left out; too long a routing key stays.
    """
    bare = publication._replace(headers=None)
    if not _encodes(bare):
        bare = bare._replace(message_id=None) if _encodes(bare._replace(message_id=None)) else bare
        bare = bare if _encodes(bare) else bare._replace(message_id=None, application=None)
    headers = dict(publication.headers or {})
    before = str(headers.pop(DROPPED, ""))
    room = properties_room(frame_max) - 4 - (bare_size(bare) if _encodes(bare) else 0)
    kept, left_out = _kept(headers, room)
    if left_out:
        kept, left_out = _kept(headers, room - _NOTE)
    named = _named(left_out)
    if note := ", ".join(filter(None, (before, named))):
        kept[DROPPED] = note[:MOST_DROPPED]
    return bare._replace(headers=kept), named


def _encodes(publication: Publication) -> bool:
    try:
        bare_size(publication)
    except UNENCODABLE:
        return False
    return True


def _kept(headers: Mapping[str, Any], room: int) -> tuple[dict[str, Any], list[str]]:
    """Return the headers that fit into so many octets, mailq's own and small ones first, and the other names."""
    sizes = {name: _size(name, value) for name, value in headers.items()}
    fitting = set()
    for name in sorted(sizes, key=lambda name: (not name.startswith("x-mailq-"), sizes[name])):
        if sizes[name] <= room:
            fitting.add(name)
            room -= int(sizes[name])
    return {name: headers[name] for name in sizes if name in fitting}, [name for name in sizes if name not in fitting]


def _size(name: str, value: object) -> float:
    try:
        return len(encode_table({name: value})) - 4
    except UNENCODABLE:
        return float("inf")


def _named(names: list[str]) -> str:
    """Return names as text, few and short ones."""
    shown = ", ".join(name.encode(errors="replace").decode()[:40] for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
