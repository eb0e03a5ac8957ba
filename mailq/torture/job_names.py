"""The name server of the torture: every domain has one MX host and one loopback address of its own; it can fall silent.

`d<number>.torture.test` is its own MX host at 127.1.1.x (`address_of`), so each disaster has a target of its own, and
what a worker remembers of one (a breaker, an answer) does not touch the next.
"""

import asyncio
from typing import Any, cast

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL = 1
_ADDRESSES = 250
"""After so many disasters an address is used again: by then nobody remembers."""


def domain_of(number: int) -> str:
    """Return the domain of a disaster."""
    return f"d{number}.torture.test"


def address_of(number: int) -> str:
    """Return the address of a disaster's MX host."""
    return f"127.1.1.{number % _ADDRESSES + 1}"


class Names(asyncio.DatagramProtocol):
    """The name server on a free UDP port of 127.0.0.1."""

    def __init__(self) -> None:
        self.silent = False
        self.unanswered = 0
        self._transport: asyncio.DatagramTransport

    async def listen(self) -> None:
        """Begin to answer."""
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))

    @property
    def server(self) -> str:
        """Return `ip:port`, as `dns.servers` of the configuration has it."""
        host, port = self._transport.get_extra_info("sockname")
        return f"{host}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Answer a question, or fall silent about it."""
        if self.silent:
            self.unanswered += 1
            return
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        self._transport.sendto(answer(query).to_wire(), addr)


def answer(query: dns.message.Message) -> dns.message.Message:
    """Return the answer to a question about one of the domains; anything else does not exist."""
    response = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True)
    first = name.split(".")[0]
    if not (first[1:].isdecimal() and name.lower() == domain_of(int(first[1:]))):
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif question.rdtype == dns.rdatatype.MX:
        response.answer.append(dns.rrset.from_text(question.name, TTL, "IN", "MX", f"10 {name}."))
    elif question.rdtype == dns.rdatatype.A:
        response.answer.append(dns.rrset.from_text(question.name, TTL, "IN", "A", address_of(int(first[1:]))))
    return response
