"""The DNS behind `ports.Resolver`, with dnspython: questions asked once, answers kept as long as they hold.

It decides what an answer means for mail (a name that does not exist is final, a server's trouble
passes) and how long it is believed: positive answers by their TTL (RFC 1035 section 3.2.1),
negative ones by the SOA's minimum (RFC 2308 section 5), trouble for `trouble_ttl` (section 7).
Questions go to recursive servers; CNAMEs are followed there and dnspython reads the chain. Which
of the addresses is tried first, and what a null MX means, is `stages.dns`'s affair.

What strangers put into the DNS is bounded: octets and records of an answer (`name_server`), records kept of
it, octets of all answers kept, questions under way, seconds per question. Names that are no host names are never
asked for.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver
import dns.rrset

from mailq.config.checks import split_endpoint
from mailq.config.dns import DnsConfig
from mailq.core.bounded import BoundedDict
from mailq.core.jobs.address import AddressError, ascii_domain
from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import printable
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import MAX_HOSTS, Family
from mailq.edges.resolver.name_server import NameServer, OversizedAnswer

MAX_ADDRESSES = 50
"""Addresses kept of one answer, so of one host and one address family."""

MAX_NAME = 253
"""Characters of a name without its final dot: 255 octets on the wire (RFC 1035 section 2.3.4)."""

MAX_QUESTIONS = 200
"""Questions begun at once: each has a socket of its own (RFC 5452 section 9.2), and a burst of
some 280 overflows the usual receive buffer (208 KiB) of a name server on the same host."""

BURST = 1.0
"""Seconds after which a question is silence and no longer part of a burst: it takes no other one's place then."""

MAX_NEGATIVE_TTL = 10_800
"""Seconds that "does not exist" is believed at most (RFC 2308 section 5: one to three hours)."""

LATE = 0.5
"""Seconds after which an address family is late: the other one's addresses do not wait for it any longer."""

DELAY = 0.05
"""Seconds for which they wait for it in any case (RFC 8305 section 3)."""

UDP_PAYLOAD = 1232
"""Octets of an answer that pass every path unfragmented; longer ones come by TCP."""

_Question = tuple[str, str]
"""Name without a final dot, and record type."""

_TYPES: dict[Family, tuple[str, ...]] = {"any": ("AAAA", "A"), "ipv4": ("A",), "ipv6": ("AAAA",)}

_Record = tuple[int, str]
"""Preference and host of an MX record; 0 and the IP address of an address record."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why there are no records; an exception would collect a traceback at each use."""

    kind: Kind
    text: str
    code: int = 451
    status: str = "4.4.3"

    def failure(self) -> Failure:
        """Return it as the end of an attempt."""
        return Failure(State.DNS, self.kind, self.text, code=self.code, status=self.status)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a question came to, and for how many seconds that holds."""

    ttl: float
    records: tuple[_Record, ...] = ()
    canonical: str = ""
    trouble: _Trouble | None = None


class _Asked(NamedTuple):
    """A question under way, since a moment on the monotonic clock."""

    task: asyncio.Task[_Answer]
    since: float


class DnsResolver:
    """Implements `ports.Resolver`; belongs to one event loop. Addresses are those of the `family` only.

    Raises:
        ValueError: no name server is configured, nor has the system any.
    """

    def __init__(self, config: DnsConfig, family: Family = "any") -> None:
        self._config = config
        self._types = _TYPES[family]
        self._stub = _stub(config)
        self._cache: BoundedDict[_Question, tuple[float, _Answer]] = BoundedDict(config.cache_bytes)
        self._asking: dict[_Question, _Asked] = {}
        self._slots = asyncio.Semaphore(MAX_QUESTIONS)

    async def mx(self, domain: str) -> Sequence[tuple[int, str]]:
        """Return the MX records as (preference, host), preferred first; a null MX has the host `.`.

        Raises:
            Failure: NXDOMAIN (550 5.1.2), or the DNS is in trouble (451 4.4.3).
        """
        answer = (await _answers([self._ask(_name(domain), "MX")]))[0]
        if answer.trouble:
            raise answer.trouble.failure()
        return answer.records

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the IP addresses of a host, IPv6 first; one family is enough if the other fails or is late.

        Raises:
            Failure: NXDOMAIN (550 5.1.2), or the DNS is in trouble (451 4.4.3).
        """
        name = _name(host)
        answers = await _answers([self._ask(name, rdtype) for rdtype in self._types])
        found = [ip for answer in answers for _, ip in answer.records]
        troubles = [answer.trouble for answer in answers if answer.trouble]
        passing = [trouble for trouble in troubles if trouble.code // 100 == 4]
        if not found and (passing or len(troubles) == len(answers)):
            raise (passing or troubles)[0].failure()
        return found

    async def canonical(self, host: str) -> str:
        """Return the name to which a host's CNAME records lead, itself if it has none or nobody tells."""
        name = _name(host)
        answers = await _answers([self._ask(name, rdtype) for rdtype in self._types])
        return next((answer.canonical for answer in answers if answer.canonical), name)

    async def close(self) -> None:
        """Give up the questions under way; whoever waits for them is cancelled."""
        tasks = [asked.task for asked in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ask(self, name: str, rdtype: str) -> _Answer | _Asked:
        """Return the answer if it is known, else the task that is finding it for all who ask."""
        question = (name, rdtype)
        expires, answer = self._cache.get(question, (0.0, None))
        if answer and time.monotonic() < expires:
            self._cache.move_to_end(question)
            return answer
        asked = self._asking.get(question)
        if asked is None:
            asked = self._asking[question] = _Asked(asyncio.create_task(self._find(question)), time.monotonic())
            asked.task.add_done_callback(lambda _: self._asking.pop(question))
        return asked

    async def _find(self, question: _Question) -> _Answer:
        async with self._slots:
            asked = asyncio.create_task(self._query(*question))
            try:
                await asyncio.wait({asked}, timeout=BURST)
            except asyncio.CancelledError:
                asked.cancel()
                raise
        answer = await asked
        self._cache.forget(question)
        if answer.ttl > 0:
            self._cache.remember(question, (time.monotonic() + answer.ttl, answer))
        while len(self._cache) > self._config.cache_size:
            self._cache.forget(next(iter(self._cache)))
        return answer

    async def _query(self, name: str, rdtype: str) -> _Answer:
        qname = dns.name.from_text(name)
        try:
            answer = await self._stub.resolve(qname, rdtype, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as nothing:
            trouble = _Trouble(Kind.ERROR, f"domain {name} does not exist", 550, "5.1.2")
            return _Answer(self._ttl(nothing.kwargs["responses"][qname], MAX_NEGATIVE_TTL), trouble=trouble)
        except dns.exception.Timeout:
            return self._trouble(Kind.TIMEOUT, f"no answer from the DNS in time for {rdtype} of {name}")
        except dns.exception.DNSException as error:
            return self._trouble(Kind.ERROR, f"DNS lookup of {rdtype} of {name} failed: {_reason(error)}")
        if answer.rrset is not None:
            canonical = answer.canonical_name.to_text(omit_final_dot=True).lower()
            return _Answer(self._ttl(answer.response, self._config.max_ttl), _records(answer.rrset), canonical)
        if _referral(answer.response):
            return self._trouble(Kind.ERROR, f"DNS lookup of {rdtype} of {name} failed: referral instead of an answer")
        return _Answer(self._ttl(answer.response, MAX_NEGATIVE_TTL))

    def _trouble(self, kind: Kind, text: str) -> _Answer:
        return _Answer(self._config.trouble_ttl, trouble=_Trouble(kind, text))

    def _ttl(self, response: dns.message.QueryMessage, most: int) -> int:
        """Return the seconds to keep a response: lowest TTL of the chain, or the SOA's minimum."""
        ttl = max(response.resolve_chaining().minimum_ttl, self._config.min_ttl)
        return min(ttl, most, self._config.max_ttl)


async def _answers(asked: Sequence[_Answer | _Asked]) -> Sequence[_Answer]:
    """Return the answers that there are: all, but once one has records those that are not late.

    The questions go on, and who is cancelled while waiting takes the answers from nobody else.
    """
    soonest: float | None = None
    while under_way := [each for each in asked if isinstance(each, _Asked) and not each.task.done()]:
        now = time.monotonic()
        if soonest is None and any(answer.records for answer in _done(asked)):
            soonest = now + DELAY
        patience = None if soonest is None else max(soonest, *(each.since + LATE for each in under_way)) - now
        if patience is not None and patience <= 0:
            break
        await asyncio.wait([each.task for each in under_way], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    return _done(asked)


def _done(asked: Sequence[_Answer | _Asked]) -> list[_Answer]:
    """Return the answers that have come."""
    come = [each for each in asked if isinstance(each, _Answer) or each.task.done()]
    return [each if isinstance(each, _Answer) else each.task.result() for each in come]


def _records(rrset: dns.rrset.RRset) -> tuple[_Record, ...]:
    """Return at most `MAX_HOSTS` or `MAX_ADDRESSES` records; odd octets in a name stay escaped."""
    if rrset.rdtype == dns.rdatatype.MX:
        records = sorted((mx.preference, mx.exchange.to_text(omit_final_dot=True).lower()) for mx in rrset)
        return tuple(records[:MAX_HOSTS])
    return tuple((0, record.address) for record in islice(rrset, MAX_ADDRESSES))


def _referral(response: dns.message.QueryMessage) -> bool:
    """Tell whether an empty response only names other servers: it does not say that there is no record.

    RFC 2308 section 2.2: "no data" has an SOA record, or neither SOA nor NS.
    """
    types = {rrset.rdtype for rrset in response.authority}
    return dns.rdatatype.NS in types and dns.rdatatype.SOA not in types


def _reason(error: dns.exception.DNSException) -> str:
    """Return why no server gave an answer: response codes or names of exceptions, nothing a stranger wrote."""
    errors = error.kwargs.get("errors", ()) if isinstance(error, dns.resolver.NoNameservers) else ()
    reasons = [str(why) if isinstance(why, str | OversizedAnswer) else type(why).__name__ for _, _, _, why, _ in errors]
    return ", ".join(dict.fromkeys(reasons)) or type(error).__name__


def _name(text: str) -> str:
    """Return a name as a key for question and cache.

    Raises:
        Failure: it cannot exist (550 5.1.2).
    """
    try:
        name = ascii_domain(text)
    except AddressError:
        name = ""
    if not 0 < len(name) <= MAX_NAME:
        wrong = f"not a valid domain name: {printable(text.encode())}"
        raise Failure(State.DNS, Kind.ERROR, wrong, code=550, status="5.1.2")
    return name


def _stub(config: DnsConfig) -> dns.asyncresolver.Resolver:
    try:
        stub = dns.asyncresolver.Resolver(configure=not config.servers)
    except dns.resolver.NoResolverConfiguration as error:
        raise ValueError(f"the system has no name servers ({error}); set dns.servers") from None
    servers = [split_endpoint(text) for text in config.servers or map(str, stub.nameservers)]
    parsing = asyncio.Lock()
    stub.nameservers = [NameServer(ip, port or 53, parsing) for ip, port in servers]
    stub.timeout = config.timeout
    stub.lifetime = config.lifetime
    stub.use_edns(0, 0, UDP_PAYLOAD)
    return stub
