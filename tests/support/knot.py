"""A real DNS for tests: Knot with the zone `test`, one server for the whole run.

Fixtures:

- `knot`: the `PrivateKnot`; `knot.server` is "127.0.0.1:port" for `dns.servers`.
- `dns_relay`: a `DnsRelay` before Knot that counts questions, can hold and drop them (UDP only).
- `silent_dns`: "127.0.0.1:port" of a server that never answers.

Names, TTL 60 if not said otherwise. Everything that has an address is on loopback, so `dns.prohibited` has to be
empty; 127.0.0.2 and the like need no set-up on Linux.

a.test b.test c.test d.test   MX 10 mx.<domain>; A 127.0.0.1: domains to deliver to
twomx.test                    MX 10 mx1 (127.0.0.2), MX 20 mx2 (127.0.0.3)
threemx.test                  MX 10 mx1 (127.0.0.4), MX 20 mx2 (127.0.0.5), MX 30 mx3 (127.0.0.1)
equal.test                    MX 10 mx1, MX 10 mx2, MX 10 mx3 (127.0.0.6, .7, .8)
implicit.test                 no MX; A 127.0.0.9
nullmx.test                   MX 0 . (RFC 7505), and an A record that must not be used
partnull.test                 MX 0 . and MX 10 mx.a.test: wrong, but seen
alias.test                    CNAME twomx.test
mxalias.test                  MX 10 alias.mxalias.test, a CNAME of mx.a.test
v4.test v6.test dual.test     MX 10 mx.<domain> with A 127.0.0.1, AAAA ::1, both
nodata.test                   only a TXT record: neither MX nor addresses
missing.test                  MX 10 gone.missing.test, which does not exist
halfmissing.test              MX 10 gone.halfmissing.test, MX 20 mx.a.test
mixed.test                    MX 10 mx.mixed.test (127.0.0.1, ::1, 192.0.2.1, which nobody has), MX 20 mx.a.test
mapped.test                   MX 10 mx.mapped.test with AAAA ::ffff:127.0.0.1
prohibitedbroken.test         MX 10 mx.a.test, MX 20 mx.broken.test
unspecified.test              MX 10 mx.unspecified.test with A 0.0.0.0 and AAAA ::
oddhost.test                  MX 10 with a host name of spaces and control characters
numeric.test                  MX 10 127.0.0.1: an address where a name should be
xn--bcher-kva.test            (bücher.test) MX 10 mx.xn--bcher-kva.test, A 127.0.0.1
big.test                      150 MX, preference 1 to 150, mx001.big.test (127.0.1.1) and on: more than UDP takes
medium.test                   30 MX, preference 1 to 30: more than UDP takes without EDNS
manyaddresses.test            MX 10 mx.manyaddresses.test with 80 A records
brief.test                    TTL 1: MX 10 mx.a.test; A mx.brief.test
gone.test, gone.brief.test    do not exist; the latter for 1 second only
loop.test                     CNAME loop2.test, a CNAME of loop.test
broken.test                   SERVFAIL, with all names below it
mxbroken.test                 MX 10 mx.broken.test
halfbroken.test               MX 10 gone.test, MX 20 mx.broken.test
lame.test                     delegated to a server that does not exist: a referral
elsewhere.example             REFUSED, as everything outside of `test`
"""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import dns.message
import dns.rdatatype
import pytest

from support.private_knot import PrivateKnot

_HEAD = """\
$TTL {ttl}
@ SOA ns.test. hostmaster.test. 1 3600 600 86400 {ttl}
@ NS ns.test.
"""

_TEST = """\
ns A 127.0.0.1
twomx MX 10 mx1.twomx
twomx MX 20 mx2.twomx
mx1.twomx A 127.0.0.2
mx2.twomx A 127.0.0.3
threemx MX 30 mx3.threemx
threemx MX 10 mx1.threemx
threemx MX 20 mx2.threemx
mx1.threemx A 127.0.0.4
mx2.threemx A 127.0.0.5
mx3.threemx A 127.0.0.1
equal MX 10 mx1.equal
equal MX 10 mx2.equal
equal MX 10 mx3.equal
mx1.equal A 127.0.0.6
mx2.equal A 127.0.0.7
mx3.equal A 127.0.0.8
implicit A 127.0.0.9
nullmx MX 0 .
nullmx A 127.0.0.1
partnull MX 0 .
partnull MX 10 mx.a
alias CNAME twomx
mxalias MX 10 alias.mxalias
alias.mxalias CNAME mx.a
v4 MX 10 mx.v4
mx.v4 A 127.0.0.1
v6 MX 10 mx.v6
mx.v6 AAAA ::1
dual MX 10 mx.dual
mx.dual A 127.0.0.1
mx.dual AAAA ::1
nodata TXT "no mail here"
missing MX 10 gone.missing
halfmissing MX 10 gone.halfmissing
halfmissing MX 20 mx.a
mixed MX 10 mx.mixed
mixed MX 20 mx.a
mx.mixed A 127.0.0.1
mx.mixed A 192.0.2.1
mx.mixed AAAA ::1
mapped MX 10 mx.mapped
mx.mapped AAAA ::ffff:127.0.0.1
prohibitedbroken MX 10 mx.a
prohibitedbroken MX 20 mx.broken
unspecified MX 10 mx.unspecified
mx.unspecified A 0.0.0.0
mx.unspecified AAAA ::
oddhost MX 10 evil\\013\\010host\\032name.oddhost
numeric MX 10 127.0.0.1.
xn--bcher-kva MX 10 mx.xn--bcher-kva
mx.xn--bcher-kva A 127.0.0.1
manyaddresses MX 10 mx.manyaddresses
loop CNAME loop2
loop2 CNAME loop
mxbroken MX 10 mx.broken
halfbroken MX 10 gone
halfbroken MX 20 mx.broken
lame NS ns.lame
"""

_BRIEF = """\
@ MX 10 mx.a.test.
mx A 127.0.0.1
"""


def zones() -> dict[str, str]:
    delivery = "".join(f"{name} MX 10 mx.{name}\nmx.{name} A 127.0.0.1\n" for name in "abcd")
    big = "".join(f"big MX {n} mx{n:03}.big\nmx{n:03}.big A 127.0.1.{n}\n" for n in range(1, 151))
    medium = "".join(f"medium MX {n} mx{n:03}.medium\n" for n in range(1, 31))
    many = "".join(f"mx.manyaddresses A 127.0.2.{n}\n" for n in range(1, 81))
    return {
        "test": _HEAD.format(ttl=60) + _TEST + delivery + big + medium + many,
        "brief.test": _HEAD.format(ttl=1) + _BRIEF,
        "broken.test": "this is not a zone (\n",
    }


class DnsRelay(asyncio.DatagramProtocol):
    """Forwards UDP questions to a server and counts them as "name TYPE".

    While `open` is cleared they are held; those in `lost` are dropped.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self._upstream = (host, int(port))
        self._tasks: set[asyncio.Task[None]] = set()
        self.asked: Counter[str] = Counter()
        self._came = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.lost: set[str] = set()
        self.server = ""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport
        self.server = "{}:{}".format(*transport.get_extra_info("sockname"))

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
        question = dns.message.from_wire(data).question[0]
        text = f"{question.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(question.rdtype)}"
        self.asked[text] += 1
        self._came.set()
        if text in self.lost:
            return
        task = asyncio.ensure_future(self._forward(data, source))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_for(self, question: str, count: int = 1) -> None:
        """Wait until a question has come `count` times."""
        async with asyncio.timeout(10):
            while self.asked[question] < count:
                self._came.clear()
                await self._came.wait()

    async def _forward(self, data: bytes, source: tuple[str, int]) -> None:
        await self.open.wait()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
            upstream.setblocking(False)
            upstream.connect(self._upstream)
            await loop.sock_sendall(upstream, data)
            self._transport.sendto(await loop.sock_recv(upstream, 65535), source)

    async def close(self) -> None:
        self._transport.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def knot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateKnot]:
    with PrivateKnot(tmp_path_factory.mktemp("knot"), zones()) as server:
        yield server


@pytest.fixture
async def dns_relay(knot: PrivateKnot) -> AsyncIterator[DnsRelay]:
    loop = asyncio.get_running_loop()
    _, relay = await loop.create_datagram_endpoint(lambda: DnsRelay(knot.server), local_addr=("127.0.0.1", 0))
    yield relay
    await relay.close()


@pytest.fixture
def silent_dns() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        yield "{}:{}".format(*mute.getsockname())
