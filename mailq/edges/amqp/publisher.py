"""Publishing with confirms, as many in flight as there are callers.

A publication is done when the broker has confirmed it, and was not returned: for a mandatory
message that no queue takes, basic.return arrives first and the confirm after it. Nothing is sent
while the broker or the network takes nothing. A broker that owes a confirm for too long counts as
lost; time in which it had blocked the connection does not count.
"""

import asyncio
from collections.abc import Callable, Sequence

from pamqp import commands

from mailq.core.broker.messages import Publication
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.encodable import UNENCODABLE, fitted
from mailq.edges.amqp.frames import Confirm, Event, Returned, publish_frames
from mailq.edges.amqp.max_message_size import MaxMessageSize
from mailq.ports.broker import BrokerError, UnencodableError, UnroutableError

PROBE = Publication("", "", b"", content_type=None, mandatory=False)
"""Goes to no queue, since none has an empty name; the broker confirms it all the same, unless it is blocked."""

LATE = 5.0
"""Seconds without a confirm after which it is doubtful whether anything is recorded."""


class NackedError(BrokerError):
    """The broker refused publications, these: a queue is full, or it cannot be written."""

    def __init__(self, refused: Sequence[Publication]) -> None:
        super().__init__(f"RabbitMQ refused a publication to {_target(refused[0])}")
        self.refused = refused


class UnconfirmedError(BrokerError):
    """The broker owes a confirm for too long: it hangs, or a quorum queue has lost its majority."""


class _Batch:
    """The publications of one caller: confirms that are due, and publications that the broker refused or returned."""

    __slots__ = ("done", "missing", "refused", "returned", "since", "text")

    def __init__(self, loop: asyncio.AbstractEventLoop, missing: int) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self.missing = missing
        self.since = loop.time()
        self.refused: list[Publication] = []
        self.returned: list[Publication] = []
        self.text = ""

    def settle(self) -> None:
        """Count one confirm; the last one wakes the caller."""
        self.missing -= 1
        if not self.missing:
            self.end(self._trouble())

    def _trouble(self) -> BrokerError | None:
        if self.returned:
            text = f"no queue takes {_target(self.returned[0])}: {self.text}"
            return UnroutableError(text, self.returned, self.refused)
        return NackedError(self.refused) if self.refused else None

    def end(self, trouble: BrokerError | None) -> None:
        """Wake the caller, unless that has happened or it has gone away."""
        if self.done.done():
            return
        if trouble is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(trouble)


class Publisher:
    """Publishes over one connection in confirm mode; `blocked_changed` hears the reason, None at its end.

    `dropped` hears of headers that were left out because AMQP cannot carry them.
    """

    def __init__(
        self,
        connection: Connection,
        confirm_timeout: float,
        blocked_changed: Callable[[str | None], None],
        ceiling: MaxMessageSize | None = None,
        dropped: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.is_blocked = False
        self._dropped = dropped
        self._connection = connection
        self._timeout = confirm_timeout
        self._blocked_changed = blocked_changed
        self._ceiling = ceiling or MaxMessageSize()
        self._loop = asyncio.get_running_loop()
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._open = asyncio.Event()
        self._open.set()
        self._clock_from = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._next_tag = 1
        self._oldest = 1
        self._pending: dict[int, tuple[_Batch, Publication]] = {}
        self._probed: asyncio.Future[None] | None = None
        connection.receiver = self

    async def start(self) -> None:
        """Switch the channel to confirm mode.

        Raises:
            BrokerError: the connection is lost.
        """
        await self._connection.call(commands.Confirm.Select(), commands.Confirm.SelectOk)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when every one is confirmed; waits while the broker is blocked.

        When several fail, one of the errors is raised, after all were answered.

        Raises:
            OversizedError: one is larger than the broker is known to take, and none was sent.
            UnencodableError: AMQP cannot carry one, and none was sent.
            UnroutableError: no queue takes one of them.
            BrokerError: the connection is lost, or the broker refused one.
        """
        if not publications:
            return
        frames = [part for publication in publications for part in self._encode(publication)]
        while not (self._unblocked.is_set() and self._connection.writable.is_set() and self._open.is_set()):
            for gate in (self._unblocked, self._connection.writable, self._open):
                await gate.wait()
        if self._connection.closed.done():
            raise _again(self._connection.closed.result())
        await self._send(publications, frames).done

    async def probe(self) -> None:
        """Return when it is known whether the broker is blocked: it tells only a connection that publishes.

        Raises:
            BrokerError: the connection is lost.
        """
        if self._connection.closed.done():
            raise _again(self._connection.closed.result())
        asked = self._probed = self._send([PROBE], self._encode(PROBE)).done
        try:
            if not self.is_blocked:
                await asyncio.wait([asked])
        finally:
            asked.cancel()
        if not asked.cancelled():
            asked.result()

    async def pause(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            BrokerError: the connection is lost, or was.
        """
        await asyncio.wait({self._connection.closed}, timeout=seconds)
        if self._connection.closed.done():
            raise _again(self._connection.closed.result())

    async def renew(self) -> None:
        """Open the channel anew, unless confirms are due on it or the broker reads nothing.

        To a channel that was refused once a quorum queue may go on to refuse, though its limit was raised meanwhile.

        Raises:
            BrokerError: the connection is lost.
        """
        if self._pending or self.is_blocked or not self._open.is_set():
            return
        self._open.clear()
        try:
            await self._connection.reopen()
            self._next_tag = self._oldest = 1
            await self.start()
        finally:
            self._open.set()

    async def unblocked(self) -> None:
        """Return when the broker is not blocked, or is lost."""
        await self._unblocked.wait()

    def _send(self, publications: Sequence[Publication], frames: Sequence[bytes]) -> _Batch:
        batch = _Batch(self._loop, len(publications))
        for publication in publications:
            self._pending[self._next_tag] = (batch, publication)
            self._next_tag += 1
        self._connection.send_all(frames)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._look_at_clock)
        return batch

    def _encode(self, publication: Publication) -> list[bytes]:
        self._ceiling.check(len(publication.body))
        try:
            return publish_frames(publication, self._connection.frame_max)
        except UNENCODABLE:
            return self._encode_fitted(publication)

    def _encode_fitted(self, publication: Publication) -> list[bytes]:
        """Encode a publication without the headers that cannot be carried."""
        shrink, left_out = fitted(publication, self._connection.frame_max)
        try:
            frames = publish_frames(shrink, self._connection.frame_max)
        except UNENCODABLE as error:
            target = publication.routing_key[:60]
            raise UnencodableError(f"a publication to {target!r} cannot be sent: {error}") from error
        if left_out:
            self._dropped(f"a publication to {publication.routing_key!r} goes without these headers: {left_out}")
        return frames

    @property
    def is_recording(self) -> bool:
        """Tell whether what is published gets confirmed: connected, not blocked, and no confirm is late."""
        oldest = next(iter(self._pending.values()), None)
        late = oldest is not None and self._loop.time() - max(oldest[0].since, self._clock_from) > LATE
        return not (self.is_blocked or late or self._connection.closed.done())

    def _look_at_clock(self) -> None:
        """Find out whether the oldest confirm is overdue, and when to look again."""
        self._timer = None
        oldest = next(iter(self._pending.values()), None)
        if oldest is None or not self._unblocked.is_set():
            return
        due = max(oldest[0].since, self._clock_from) + self._timeout
        if due <= self._loop.time():
            self._connection.fail(UnconfirmedError(f"RabbitMQ owes a publisher confirm for {self._timeout:g} s"))
        else:
            self._timer = self._loop.call_at(due, self._look_at_clock)

    # The receiver of the connection.

    def received(self, event: Event) -> None:
        """Match a confirm or a return to its publication."""
        if isinstance(event, Confirm):
            self._confirm(event)
        elif isinstance(event, Returned):
            self._return(event)

    def blocked(self, reason: str | None) -> None:
        """Hold publications back, or let them go again."""
        self.is_blocked = reason is not None
        if reason is not None:
            self._unblocked.clear()
            if self._probed is not None:
                self._probed.cancel()  # that is the answer
        else:
            self._clock_from = self._loop.time()
            self._unblocked.set()
            if self._timer is None:
                self._look_at_clock()
        self._blocked_changed(reason)

    def lost(self, error: BrokerError) -> None:
        """Tell everyone who waits."""
        self._ceiling.learn(error)
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, {}
        self._unblocked.set()
        for batch, _ in pending.values():
            if not batch.done.done():
                batch.end(_again(error))

    def _confirm(self, confirm: Confirm) -> None:
        last, multiple, ack = confirm
        for tag in range(self._oldest, last + 1) if multiple else (last,):
            entry = self._pending.pop(tag, None)
            if entry is None:
                continue
            batch, publication = entry
            if not ack:
                batch.refused.append(publication)
            batch.settle()
        if multiple:
            self._oldest = last + 1

    def _return(self, returned: Returned) -> None:
        """Mark what came back: a return has no tag, so all that look like it are taken for it."""
        for batch, publication in self._pending.values():
            if (
                publication.routing_key == returned.routing_key
                and publication.exchange == returned.exchange
                and publication.body == returned.body
            ):
                batch.text = returned.text
                if publication not in batch.returned:
                    batch.returned.append(publication)


def _target(publication: Publication) -> str:
    if publication.exchange:
        return f"routing key {publication.routing_key!r} of exchange {publication.exchange!r}"
    return f"queue {publication.routing_key!r}"


def _again(error: BrokerError) -> BrokerError:
    """Return a fresh exception of the same text: one that is raised in many tasks collects their tracebacks."""
    return BrokerError(str(error))
