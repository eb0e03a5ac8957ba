"""A name server that says what a test wants, over UDP and TCP on one loopback port.

    async with NameServerOf(answer) as server:
        resolver = DnsResolver(DnsConfig(servers=(server.address,)))

`answer` gets each question as dnspython has it, and returns octets or a message; None is silence.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Self

import dns.message
import dns.rdatatype

Answer = Callable[[dns.message.Message], dns.message.Message | bytes | None]


class NameServerOf(asyncio.DatagramProtocol):
    """A name server, inside `async with`; `asked` counts questions as "name TYPE"."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: Counter[str] = Counter()
        self.address = ""
        self._askers: dict[bytes, object] = {}

    async def __aenter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            self._tcp = await asyncio.start_server(self._serve, sock=listener.dup())
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", port))
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tcp.close()
        self._udp.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._askers[data[:2]] = addr
        if (octets := self._said(data)) is not None:
            self._udp.sendto(octets, addr)

    def say(self, question_id: int, octets: bytes) -> None:
        """Send octets to whoever asked a question by UDP."""
        self._udp.sendto(octets, self._askers[question_id.to_bytes(2)])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            octets = self._said(await reader.readexactly(length))
            if octets is not None:
                writer.write(struct.pack("!H", len(octets)) + octets)
                await writer.drain()
                await reader.read()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    def _said(self, wire: bytes) -> bytes | None:
        question = dns.message.from_wire(wire)
        (asked,) = question.question
        self.asked[f"{asked.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(asked.rdtype)}"] += 1
        said = self._answer(question)
        return said.to_wire(max_size=65_535) if isinstance(said, dns.message.Message) else said


def many_mx(question: dns.message.Message, count: int) -> bytes:
    """Return an answer of so many MX records, each as short as can be, with the question's name as host."""
    wire = question.to_wire()
    (asked,) = question.question
    end = 12 + len(asked.name.to_wire()) + 4
    header = struct.pack("!6H", question.id, 0x8180, 1, count, 0, 0)
    records = (struct.pack("!HHHIHHH", 0xC00C, 15, 1, 60, 4, preference, 0xC00C) for preference in range(count))
    return header + wire[12:end] + b"".join(records)
