"""The broker as the worker sees it: `ports.broker.Broker` over three connections.

One controls (declares, checks, counts), one consumes, one publishes: a broker that holds publishers
back stops reading from them, and acknowledgements must not wait for that. A broker has one life: when
any of the three ends, all of it is over, `closed` tells why, and the worker opens a new one.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Consumed, Publication
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection, RefusedError
from mailq.edges.amqp.consumer import Consumer, ConsumingEndedError
from mailq.edges.amqp.field_tables import MAX_SHORT
from mailq.edges.amqp.max_message_size import MaxMessageSize
from mailq.edges.amqp.publisher import Publisher, UnconfirmedError
from mailq.edges.amqp.republisher import Republisher
from mailq.ports.broker import BrokerError
from mailq.ports.observer import Observer

T = TypeVar("T")

KNOWN_QUEUES = 1000
"""So many queue names of producers are remembered as existing."""

TROUBLES: dict[type[BrokerError], str] = {
    UnconfirmedError: "unconfirmed",
    ConsumingEndedError: "cancelled",
    RefusedError: "refused",
    topology.TopologyError: "refused",
}
"""What an observer is told of trouble that has a name of its own, besides what becomes of the connection."""


class Broker:
    """One life of the way to RabbitMQ; made by `open`."""

    def __init__(
        self,
        config: RabbitConfig,
        prefetch: int,
        observer: Observer,
        control: Connection,
        consuming: Connection,
        publishing: Connection,
        ceiling: MaxMessageSize | None = None,
    ) -> None:
        self._config = config
        self._prefetch = prefetch
        self._observer = observer
        self._control = control
        self._consuming = consuming
        self._publishing = publishing
        self._publisher = Publisher(
            publishing, config.confirm_timeout, self._blocked_changed, ceiling, partial(observer.broker, "dropped")
        )
        self._insistence = Republisher(self._publisher, self._untaken_changed, self._mend)
        self._consumer: Consumer | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._receiving = self._full = False
        self._control_lock = asyncio.Lock()
        self._control_tasks: set[asyncio.Task[object]] = set()
        self._known: dict[str, None] = {}
        self._ended = False
        for connection in (control, consuming, publishing):
            connection.closed.add_done_callback(self._connection_ended)

    @classmethod
    async def open(
        cls, config: RabbitConfig, prefetch: int, observer: Observer, ceiling: MaxMessageSize | None = None
    ) -> "Broker":
        """Connect, declare or check the topology, and be ready to publish and consume.

        `ceiling` is what earlier connections have learnt.

        Raises:
            BrokerError: no connection, no login, or the topology is not as it must be.
        """
        address = Address.of(config)
        async with AsyncExitStack() as undo:
            connections: list[Connection] = []
            undo.push_async_exit(partial(_give_up, connections))
            for role in ("control", "consuming", "publishing"):
                connection = await Connection.open(
                    address,
                    f"mailq {os.getpid()} {role} {config.outbox}",
                    heartbeat=config.heartbeat,
                    connect_timeout=config.connect_timeout,
                    answer_timeout=config.confirm_timeout,
                )
                connections.append(connection)
                if role == "control":
                    try:
                        notes = await topology.prepare(connection, config)
                        if notes:
                            observer.broker("differs", f"used as it is: {' | '.join(notes)}")
                    except topology.TopologyError as trouble:
                        _tell(observer, trouble)
                        raise
            control, consuming, publishing = connections
            broker = cls(config, prefetch, observer, control, consuming, publishing, ceiling)
            await broker._publisher.start()
            undo.pop_all()
            return broker

    async def consume(self, deliver: Callable[[Consumed], None]) -> None:
        """Begin to consume the outbox; each message is handed to `deliver`, which must not raise.

        While the broker is blocked nothing is received, for its result could not be published: where it is
        blocked already, consuming begins when that is over.

        Raises:
            BrokerError: the connection is lost, or the outbox cannot be consumed.
        """
        await self._publisher.probe()
        self._consumer = Consumer(self._consuming, self._config.outbox, self._prefetch, deliver)
        if not self._publisher.is_blocked:
            await self._begin(self._consumer)
            return
        self._beginning = asyncio.create_task(self._begin_later(self._consumer))

    async def _begin(self, consumer: Consumer) -> None:
        await consumer.start()
        self._receiving = True
        self._hold()

    async def _begin_later(self, consumer: Consumer) -> None:
        with contextlib.suppress(BrokerError):  # it has ended the connection, which tells why
            await self._publisher.unblocked()
            await self._begin(consumer)

    def ack(self, tag: int) -> None:
        """Acknowledge a message; nothing happens once the connection is lost: it is given out again."""
        if self._consumer is not None:
            self._consumer.ack(tag)

    def acknowledged(self) -> asyncio.Future[bool]:
        """Return what tells when RabbitMQ has all acknowledgements made so far; False: it was lost before.

        Where the connection is held, the answer waits for that to end.
        """
        if self._consumer is not None:
            return self._consumer.acknowledged()
        none = asyncio.get_running_loop().create_future()
        none.set_result(True)
        return none

    def requeue(self, tag: int) -> None:
        """Give a message back to the outbox; as `ack`, once only. The broker need not count a delivery."""
        if self._consumer is not None:
            self._consumer.requeue(tag)

    def reject(self, tag: int) -> None:
        """Give a message back to the outbox; as `ack`, once only. The broker counts a delivery."""
        if self._consumer is not None:
            self._consumer.reject(tag)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all and return when the broker has confirmed every one; waits while it does not take one.

        Raises:
            OversizedError: one is larger than the broker is known to take, and none was sent.
            UnencodableError: AMQP cannot carry one, and none was sent.
            BrokerError: the connection is lost.
        """
        await self._insistence.publish(publications)

    async def ensure_queue(self, name: str) -> bool:
        """Tell whether a queue can be published to; declares one that is missing if `declare_job_queues` allows it.

        The name is a producer's: one that the broker does not accept is simply none.

        Raises:
            BrokerError: the connection is lost.
        """
        if name in self._known:
            return True
        if not (_is_text(name) and 0 < len(name.encode()) <= MAX_SHORT):
            return False
        exists = await self._controlled(lambda: self._ensure(name))
        if exists:
            if len(self._known) >= KNOWN_QUEUES:
                self._known.clear()
            self._known[name] = None
        return exists

    def hold(self, *, held: bool) -> None:
        """Stop or go on to receive messages; the broker keeps the rest."""
        self._full = held
        self._hold()

    async def stop_consuming(self) -> None:
        """Consume no more; what was delivered may still be settled."""
        if self._consumer is not None:
            await self._receive_all()
            try:
                await self._consumer.stop()
            except BrokerError:
                return  # then nothing is delivered either

    async def depth(self) -> int | None:
        """Return the number of ready messages in the outbox, None if it cannot be told."""
        try:
            return await self._controlled(lambda: topology.count(self._control, self._config.outbox))
        except BrokerError:
            return None

    @property
    def blocked(self) -> bool:
        """Tell whether the broker takes no publications at the moment (memory or disk alarm)."""
        return self._publisher.is_blocked

    @property
    def alive(self) -> bool:
        """Tell whether none of the connections is over yet."""
        return not self._ended

    @property
    def silent(self) -> bool:
        """Tell whether any connection has heard nothing for a heartbeat interval or longer."""
        return self._control.silent or self._consuming.silent or self._publishing.silent

    @property
    def recording(self) -> bool:
        """Tell whether results get recorded at the moment; while they do not, nothing new may be sent."""
        return self._publisher.is_recording and not self._insistence.waiting

    async def closed(self) -> BrokerError:
        """Wait until any of the connections is over and return why."""
        ends = {self._control.closed, self._consuming.closed, self._publishing.closed}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return next(iter(done)).result()

    def fail(self, trouble: BrokerError) -> None:
        """End all connections because of `trouble`; safe to call twice."""
        for connection in (self._control, self._consuming, self._publishing):
            connection.fail(trouble)

    async def close(self) -> None:
        """Send the last acknowledgements, say goodbye and close everything; safe to call twice."""
        await self._receive_all()
        if self._consumer is not None:
            self._consumer.flush()
        await asyncio.gather(self._consuming.close(), self._publishing.close(), self._control.close())
        await asyncio.gather(*self._control_tasks, return_exceptions=True)

    def _blocked_changed(self, reason: str | None) -> None:
        self._observer.broker("unblocked" if reason is None else "blocked", reason or "")
        self._hold()

    def _untaken_changed(self, event: str, detail: str) -> None:
        if event == "rerouted":
            self._known.clear()  # one of them is gone
        if self.alive:
            self._observer.broker(event, detail)
        self._hold()

    async def _mend(self) -> None:
        """Declare or check the topology again: a queue or binding of mailq's own is missing."""
        try:
            await self._controlled(lambda: topology.prepare(self._control, self._config))
        except topology.TopologyError as trouble:
            _tell(self._observer, trouble)

    def _hold(self) -> None:
        """Receive nothing while memory is full or results are not taken; answers to calls are received."""
        untold = self._publisher.is_blocked or self._insistence.waiting
        self._consuming.hold(held=self._receiving and (self._full or untold))

    async def _receive_all(self) -> None:
        """Hold no more, and begin no more: what is awaited now is the end."""
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        self._receiving = False
        self._hold()

    def _connection_ended(self, closed: asyncio.Future[BrokerError]) -> None:
        """Tell why it is over, once, where the reason has a name of its own."""
        if not self._ended and not closed.cancelled():
            self._ended = True
            _tell(self._observer, closed.result())

    async def _ensure(self, name: str) -> bool:
        try:
            await topology.count(self._control, name)
        except RefusedError as refused:
            if refused.code == topology.LOCKED:  # exclusive to its consumer, who takes what others publish
                return True
            if refused.code != topology.NOT_FOUND or not self._config.declare_job_queues:
                return False
        else:
            return True
        try:
            await topology.declare(self._control, topology.Queue(name, topology.lasting(self._config)))
        except RefusedError:
            return False
        return True

    async def _controlled(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something over the control connection, one at a time, to its end even if the caller is cancelled."""
        task = asyncio.create_task(self._one_at_a_time(work))
        self._control_tasks.add(task)
        task.add_done_callback(self._control_done)
        return await asyncio.shield(task)

    async def _one_at_a_time(self, work: Callable[[], Awaitable[T]]) -> T:
        async with self._control_lock:
            return await work()

    def _control_done(self, task: asyncio.Task[object]) -> None:
        """Forget a finished piece of work; asking for its exception marks it as seen."""
        self._control_tasks.discard(task)
        if not task.cancelled():
            task.exception()


async def _give_up(
    connections: Sequence[Connection], kind: type[BaseException] | None, _error: object, _traceback: object
) -> None:
    """Close what was opened in vain; who is cancelled has no time for goodbyes."""
    if kind is asyncio.CancelledError:
        for connection in connections:
            connection.fail(BrokerError("given up while connecting"))
    await asyncio.gather(*(connection.close() for connection in connections))


def _is_text(name: str) -> bool:
    """Tell whether a name is Unicode text: half a surrogate pair is none."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _tell(observer: Observer, trouble: BrokerError) -> None:
    """Let trouble be seen that has a name of its own."""
    if (event := TROUBLES.get(type(trouble))) is not None:
        observer.broker(event, str(trouble))
