"""What the flow needs of the world, as Protocols. No behaviour lives here.

The edges implement these with one library each; tests implement them with a few lines.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Protocol

from mailq.core.answers.verdict import Verdict
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.jobs.job import Job
from mailq.core.journal.records import Entry, EntryId, JobKey, JournalStats
from mailq.core.outcomes import End
from mailq.core.results.result import Result
from mailq.core.smtp.failure import Cause
from mailq.core.smtp.reply import Reply
from mailq.core.traffic.rate import Rate, Slot
from mailq.core.traffic.routes import Source, Target

Now = Callable[[], datetime]
"""Returns the current moment in UTC."""

STOPS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""The exceptions that end work on purpose. Every other BaseException is a bug: a Rust library's panic is one."""


class Wire(Protocol):
    """One TCP connection to one target, not yet opened.

    A reply is a value, silence is an exception: what goes wrong is raised as
    `core.failure.Trouble` (lost, invalid, error). Clocks are the caller's but for `reply`. First the opening
    calls, one exchange each; then `take_over`, after which replies are read in order with `reply`.
    """

    @property
    def local(self) -> str | None:
        """Local IP address, once a connection was tried."""

    @property
    def local_port(self) -> int | None:
        """Local port, once a connection was tried; 0 if there was none."""

    @property
    def sent(self) -> int:
        """Octets given to the connection so far (inside TLS: plaintext octets)."""

    @property
    def alive(self) -> bool:
        """Tell whether the peer may still be spoken to: open, in step, nothing unread."""

    async def bind(self, source: Source) -> None:
        """Create the socket and bind it to the source address."""

    async def connect(self) -> None:
        """Set up the TCP connection."""

    async def handshake(self) -> None:
        """Start TLS at once, before the greeting (RFC 8314 section 3.3)."""

    async def greeting(self) -> Reply:
        """Return the server's first reply."""

    async def command(self, line: str) -> Reply:
        """Send one command line and return its reply."""

    async def starttls(self) -> Reply:
        """Ask for TLS and, if the answer is 220, do the handshake; returns the answer."""

    def security(self) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of the TLS session; {} without TLS."""

    def take_over(self) -> None:
        """Switch from the opening protocol to the transaction protocol."""

    def write(self, data: bytes) -> None:
        """Send octets without waiting; a lost connection is noticed by `reply`."""

    async def drain(self) -> None:
        """Wait until the connection can take more, or is lost (write backpressure)."""

    def reply(self, seconds: float) -> Awaitable[Reply]:
        """Return the next reply in order; one is awaited at a time.

        Raises:
            TimeoutError: none came in so many seconds.
        """

    def ready(self) -> Reply | None:
        """Return the next reply if it has come already: replies to pipelined commands come together."""

    def close(self) -> None:
        """Close the connection at once; safe to call twice."""


class Encryption(Protocol):
    """How connections are encrypted, and what is to be told of them."""

    @property
    def context(self) -> ssl.SSLContext:
        """The client's TLS settings, made once."""

    def facts(self, ssl_object: ssl.SSLObject, host: str) -> dict[str, Any]:
        """Return the `cipher` and `certificate` result properties of a TLS session with `host`."""


class Dialer(Protocol):
    """Makes wires."""

    def wire(self, target: Target) -> Wire:
        """Return an unconnected wire to `target`."""


class Resolver(Protocol):
    """Answers from the DNS, cached. Failures are `core.failure.Failure` in state dns.

    NXDOMAIN has a permanent code, SERVFAIL and timeouts a transient one.
    """

    async def mx(self, domain: str) -> Sequence[tuple[int, str]]:
        """Return the MX records as (preference, host); empty if the name exists without any."""

    async def addresses(self, host: str) -> Sequence[str]:
        """Return the IP addresses of a host, IPv6 first; empty if the name exists without any."""

    async def canonical(self, host: str) -> str:
        """Return the name to which a host's CNAME records lead; itself if there are none."""


class Sources(Protocol):
    """The local addresses that mail may be sent from."""

    @property
    def pools(self) -> frozenset[str]:
        """The names of the pools that there are."""

    def usable(self, ips: Sequence[str] | None, pool: str | None) -> Sequence[Source]:
        """Return the sources for a job's `ips` (None: the configured ones) and `pool` that exist on the host."""


class Publisher(Protocol):
    """The way back to the broker."""

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one.

        Raises:
            OversizedError: one is larger than the broker takes, and none was sent.
            UnencodableError: AMQP cannot carry one, and none was sent.
            BrokerError: connection lost, message returned (no such queue) or refused.
        """

    async def ensure_queue(self, name: str) -> bool:
        """Tell whether a queue of that name can be published to (it may be declared for it)."""


class Broker(Publisher, Protocol):
    """One life of the connection to the broker: when any part of it ends, all of it is over."""

    async def consume(self, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume the outbox; each message is handed to `deliver`."""

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost."""

    def acknowledged(self) -> asyncio.Future[bool]:
        """Return what tells when the broker has all acknowledgements made so far; False: it was lost before."""

    def requeue(self, tag: int) -> None:
        """Give a message back to the outbox, undamaged: the broker need not count a delivery."""

    def reject(self, tag: int) -> None:
        """Give a message back to the outbox after mailq failed on it: the broker counts a delivery."""

    @property
    def alive(self) -> bool:
        """Tell whether the connection is not over yet."""

    @property
    def silent(self) -> bool:
        """Tell whether nothing was heard for so long that the broker may take this process for lost."""

    @property
    def recording(self) -> bool:
        """Tell whether results get recorded at the moment; while they do not, nothing new may be sent."""

    def hold(self, *, held: bool) -> None:
        """Stop or go on to receive messages."""

    async def stop_consuming(self) -> None:
        """Consume no more; what was delivered may still be settled."""

    async def depth(self) -> int | None:
        """Return the number of ready messages in the outbox, None if it cannot be told."""

    async def closed(self) -> "BrokerError":
        """Wait until the connection is over and return why."""

    def fail(self, trouble: "BrokerError") -> None:
        """End the connection because of `trouble`; safe to call twice."""

    async def close(self) -> None:
        """Close what is open."""


class BrokerError(Exception):
    """The broker could not do what was asked; nothing may be taken as done."""


class UnroutableError(BrokerError):
    """Published messages were returned, these: no queue takes them; others of the same call may have been refused."""

    def __init__(self, text: str, returned: Sequence[Publication] = (), refused: Sequence[Publication] = ()) -> None:
        super().__init__(text)
        self.returned = returned
        self.refused = refused


class UnencodableError(Exception):
    """AMQP cannot carry a publication; nothing was sent, and the connection is as it was."""


class OversizedError(Exception):
    """A publication is larger than the broker takes; nothing was sent, and the connection is as it was."""

    def __init__(self, octets: int, most: int) -> None:
        super().__init__(f"RabbitMQ takes no message of {octets} octets: its max_message_size is {most}")
        self.most = most


class Observer(Protocol):
    """Sees everything, changes nothing: metrics and logs implement it and must not raise."""

    def consumed(self) -> None:
        """A message came from the outbox."""

    def ended(self, end: End) -> None:
        """What became of a message that had come."""

    def journal(self, trouble: str | None, notes: Sequence[str], stats: JournalStats) -> None:
        """The journal cannot be written because of `trouble` (None: it can), and what it has to say."""

    def attempted(self, job: Job, result: Result, verdict: Verdict) -> None:
        """One attempt was judged."""

    def refused(self, result: Result) -> None:
        """A document that is no job was answered with a result of its own."""

    def parked(self, job: Job, until: datetime, cause: Cause, reason: str) -> None:
        """A job went back without an attempt."""

    def poisoned(self, reason: str) -> None:
        """A message that is no job went to the poison queue."""

    def published(self, routing_key: str, count: int) -> None:
        """The broker confirmed publications; `routing_key` is an outcome or `delay`, `poison`."""

    def bug(self, where: str, error: BaseException) -> None:
        """Something happened that the code does not foresee."""

    def broker(self, event: str, detail: str) -> None:
        """The connection to the broker changed: connected, lost, blocked, unblocked, retrying."""

    def flight(self, jobs: int, sessions: int) -> None:
        """So many jobs are being worked on and so many SMTP connections are open."""

    def session_limit(self, host: str, messages: int) -> None:
        """An MX host was found to take no more than so many messages in one session."""

    def stalled(self, *, stalled: bool) -> None:
        """The outbox holds jobs, the worker is connected, and nothing is delivered to it."""


class Journal(Protocol):
    """Remembers, beyond the life of a process, what was handed over. No call waits for another process."""

    def hand_over(self, key: JobKey, *, contested: bool) -> EntryId:
        """Record that a message is about to be handed over, and keep room for its answer.

        `contested` tells that another process may have the same job.

        Raises:
            JournalError: it cannot be recorded.
            Postponed: another process has handed it over, or is about to.
        """

    def answered(self, entry: EntryId, record: bytes) -> None:
        """Record what the answer came to, in at most `MAX_ANSWER` octets (longer: without them); never raises."""

    def withdrawn(self, entry: EntryId) -> None:
        """Record that it was not handed over after all; never raises."""

    def published(self, entries: Collection[EntryId]) -> None:
        """Record that everything published for them is confirmed, but their jobs may come again; never raises."""

    def released(self, entry: EntryId) -> None:
        """Leave an answered entry, own or taken, to whoever gets its job; never raises."""

    def settled(self, entry: EntryId) -> None:
        """Record that everything published for it is confirmed, and of no use to others; never raises."""

    def take(self, key: JobKey) -> Entry:
        """Return how a job stands that came again; an answered or doubtful entry is now the caller's to settle.

        Raises:
            JournalError: it cannot be told.
        """

    def trial(self, digest: bytes) -> None:
        """Record that something suspect (16 octets name it) is about to be tried.

        Raises:
            JournalError: it cannot be recorded.
        """

    def tried(self, digest: bytes) -> None:
        """Record that the trial was survived; never raises."""

    def trials(self, digest: bytes) -> int:
        """Return how many processes died in a trial of it.

        Raises:
            JournalError: it cannot be told.
        """

    def trouble(self) -> str | None:
        """Return why nothing more should be consumed, None if all is well."""

    def tend(self) -> tuple[str, ...]:
        """Do what is due, once a second; return what is to be said of it, each once. Never raises."""

    def stats(self) -> JournalStats:
        """Return figures for metrics."""

    def close(self) -> None:
        """Leave behind what is not settled, and nothing else."""


class DuplicatesError(Exception):
    """The memory of ids cannot be read or written; the text says why and what helps."""


class Duplicates(Protocol):
    """Remembers which ids were consumed lately, for all processes of a host and beyond their lives."""

    async def first(self, identity: bytes, content: bytes, *, again: bool) -> datetime | None:
        """Return when another publication of the id was consumed; None: this one is the first, which is remembered.

        `identity` and `content` are digests; `again` tells that the message may have been consumed before, so that it
        is the first one itself if the content is the same.

        Raises:
            DuplicatesError: nobody can tell.
        """

    def close(self) -> None:
        """Close what is open."""


class Claim(Protocol):
    """The leave to hand a message over, recorded where others see it."""

    def begin(self) -> None:
        """Ask whether a message may be offered to a receiver at all.

        Raises:
            Postponed: what came of it could not be recorded now.
        """

    def hand_over(self) -> None:
        """Note that the last octets of the message are about to be sent.

        Raises:
            Postponed: another process has the same job.
            JournalError: it cannot be noted, so it must not be done.
        """


class Limits(Protocol):
    """What processes and one day hosts share of the limits; keys name what is limited."""

    async def take(self, key: str, rate: Rate, *, patience: float, returned: bool) -> Slot:
        """Return when the next event of a rate may be, for all who share it; see `core.pace.take`."""

    async def enter(self, key: str, limit: int) -> bool:
        """Count one more in if fewer than `limit` are in; tell whether it is, to be followed by one `leave`."""

    def leave(self, key: str) -> None:
        """Count one out that `enter` has counted in."""

    def wanted(self, key: str, limit: int, going: int) -> bool:
        """Tell whether another process waits that has less of the `limit`: then one more is for it.

        `going` is how many of this process are on their way there already.
        """

    def trouble(self) -> str | None:
        """Return why nothing can be shared yet, None if it can; without, nothing should be consumed."""

    def tend(self) -> None:
        """Do what is due, once a second; never raises."""
