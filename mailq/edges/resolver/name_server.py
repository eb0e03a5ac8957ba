"""One recursive name server, asked over UDP and TCP; its answers are bounded before they are read.

dnspython needs up to 3 ms of CPU for one record with a name of many labels, and parses all sections of an answer at
once. An answer that a stranger made large would stop the process for seconds. So its octets and records are
counted first, and one with more than a few records is parsed in a thread, one at a time.

A server that does not understand EDNS is asked again without (RFC 6891 section 7), and so for a while from then on.
"""

import asyncio
import struct
from time import monotonic

import dns.exception
import dns.message
import dns.nameserver
import dns.rcode

MAX_OCTETS = 32 * 1024
MAX_RECORDS = 320
"""Octets and records, those of all sections together, of an answer that is read."""

FEW_RECORDS = 10
"""Records that are parsed in the event loop: at most 30 ms."""

WITHOUT_EDNS = 600.0
"""Seconds for which a server that does not understand EDNS is asked without."""

MAX_WAITING = 16
"""Datagrams of one question that wait to be read; further ones are dropped."""

_HEADER = struct.Struct("!6H")
_LENGTH = struct.Struct("!H")

_NO_EDNS = frozenset({dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS})


class OversizedAnswer(dns.exception.FormError):
    """A name server's answer is larger than what is read; a form error, so that dnspython asks the next server."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[no-untyped-call]


class NameServer(dns.nameserver.Do53Nameserver):
    """A name server; `parsing` is shared by all of a process, and lets one large answer be parsed at a time."""

    def __init__(self, address: str, port: int, parsing: asyncio.Lock) -> None:
        super().__init__(address, port)
        self._parsing = parsing
        self._plain_until = 0.0

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,  # noqa: ASYNC109 - dnspython's signature
        source: str | None,  # noqa: ARG002
        source_port: int,  # noqa: ARG002
        max_size: bool,  # noqa: FBT001
        backend: object,  # noqa: ARG002
        one_rr_per_rrset: bool = False,  # noqa: ARG002, FBT001, FBT002
        ignore_trailing: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> dns.message.Message:
        """Return the answer to a question, asked over TCP if `max_size`.

        Raises:
            OversizedAnswer: there are too many records in it, or octets.
            dns.message.Truncated: it is to be asked for over TCP.
            dns.exception.Timeout: there is none within so many seconds.
            OSError, EOFError, dns.exception.DNSException: it is not to be had here.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._ask(request, tcp=max_size)
        except TimeoutError:
            raise dns.exception.Timeout(timeout=timeout) from None  # type: ignore[no-untyped-call]

    async def _ask(self, request: dns.message.QueryMessage, *, tcp: bool) -> dns.message.Message:
        exchange = self._tcp if tcp else self._udp
        if monotonic() < self._plain_until:
            return await exchange(_without_edns(request))
        answer = await exchange(request)
        if answer.rcode() in _NO_EDNS:
            answer = await exchange(_without_edns(request))
            if answer.rcode() not in _NO_EDNS:
                self._plain_until = monotonic() + WITHOUT_EDNS
        return answer

    async def _udp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        """Return the first datagram that is an answer to the question: others may be forged (RFC 5452 section 4)."""
        loop = asyncio.get_running_loop()
        transport, inbox = await loop.create_datagram_endpoint(_Inbox, remote_addr=(self.address, self.port))
        try:
            transport.sendto(request.to_wire())
            while True:
                wire = await inbox.wires.get()
                if wire[:2] != _LENGTH.pack(request.id):
                    continue
                try:
                    answer = await self._parsed(wire)
                except OversizedAnswer:
                    raise
                except dns.message.Truncated as cut:
                    if request.is_response(cut.message()):  # type: ignore[no-untyped-call]
                        raise
                except dns.exception.DNSException:  # the right one may still come
                    continue
                else:
                    if request.is_response(answer):
                        return answer
        finally:
            transport.close()

    async def _tcp(self, request: dns.message.QueryMessage) -> dns.message.Message:
        reader, writer = await asyncio.open_connection(self.address, self.port)
        try:
            wire = request.to_wire()
            writer.write(_LENGTH.pack(len(wire)) + wire)
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MAX_OCTETS:
                raise OversizedAnswer(f"an answer of more than {MAX_OCTETS} octets")
            answer = await self._parsed(await reader.readexactly(length))
        finally:
            writer.close()
        if not request.is_response(answer):
            raise ConnectionError("not an answer to the question")
        return answer

    async def _parsed(self, wire: bytes) -> dns.message.Message:
        records = sum(_HEADER.unpack_from(wire)[3:]) if len(wire) >= _HEADER.size else 0
        if len(wire) > MAX_OCTETS:
            raise OversizedAnswer(f"an answer of more than {MAX_OCTETS} octets")
        if records > MAX_RECORDS:
            raise OversizedAnswer(f"an answer of {records} records, more than {MAX_RECORDS}")
        if records <= FEW_RECORDS:
            return dns.message.from_wire(wire, raise_on_truncation=True)
        async with self._parsing:
            return await asyncio.to_thread(dns.message.from_wire, wire, raise_on_truncation=True)


class _Inbox(asyncio.DatagramProtocol):
    """Datagrams from one name server; that nobody listens there is silence, since a server may be starting again."""

    def __init__(self) -> None:
        self.wires: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        if not self.wires.full():
            self.wires.put_nowait(data)


def _without_edns(request: dns.message.QueryMessage) -> dns.message.QueryMessage:
    """Return the same question without EDNS, under a new number."""
    (question,) = request.question
    return dns.message.make_query(question.name, question.rdtype, question.rdclass, use_edns=False)
