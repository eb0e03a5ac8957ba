"""One AMQP connection with one channel: log in, keep alive, call, send, end (AMQP 0-9-1 section 2.2).

It has one life. Whatever ends it (the peer, the network, silence, a broken protocol, ourselves)
resolves one future, `closed`, with the reason. What is sent within one turn of the event loop leaves
in one segment. Methods that have an answer go through `call`; everything else that arrives is
handed to the `receiver`, a consumer or a publisher.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from typing import Protocol, cast

from pamqp import commands
from pamqp import frame as codec
from pamqp.base import Frame
from pamqp.common import FieldTable

from mailq import __version__
from mailq.core.smtp.reply import printable
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connect import reach
from mailq.edges.amqp.connect_errors import OTHER_PROTOCOL, UnreachableError, again, hung_up, silent, turned_away
from mailq.edges.amqp.frames import HEARTBEAT, MAX_FRAME, PROTOCOL_HEADER, Event, FrameError, FrameReader
from mailq.edges.amqp.methods import ConnectionOpen
from mailq.edges.amqp.write_batching import WriteBatcher
from mailq.ports.broker import BrokerError

CROWD = 24
"""Parts sent at once that mean load: eight publications."""

GATHER = 0.010
"""Seconds for which parts are gathered under load."""

CLOSE_SECONDS = 5.0
"""How long a connection that we close waits for the broker's goodbye."""

_CAPABILITIES: FieldTable = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")


class RefusedError(BrokerError):
    """The broker answered a call by closing the channel; the next call opens a new one."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"RabbitMQ refused: {code} {text}")
        self.code = code
        self.text = text


class Receiver(Protocol):
    """What a consumer or publisher makes of what arrives; it must not raise."""

    def received(self, event: Event) -> None:
        """Take an event that answers no call."""

    def blocked(self, reason: str | None) -> None:
        """The broker takes no publications for that reason; None: it does again."""

    def lost(self, error: BrokerError, /) -> None:
        """The connection is over; nothing more arrives."""


class Connection(asyncio.Protocol):
    """One connection to RabbitMQ with one open channel, number 1."""

    def __init__(self, address: Address, name: str, *, heartbeat: int, answer_timeout: float) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[BrokerError] = loop.create_future()
        self.writable = asyncio.Event()
        self.frame_max = MAX_FRAME
        self.server = ""
        self.receiver: Receiver | None = None
        self._loop = loop
        self._address = address
        self._name = name
        self._heartbeat = heartbeat
        self._answer_timeout = answer_timeout
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._gathering = WriteBatcher(self.flush, CROWD, GATHER)
        self._channel_open = self._logged_in = False
        self._answers: tuple[type[Frame], ...] = ()
        self._answer: asyncio.Future[Frame] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._heard = self._spoke = True
        self._held = False
        self._silent_ticks = 0

    @classmethod
    async def open(
        cls, address: Address, name: str, *, heartbeat: int, connect_timeout: float, answer_timeout: float
    ) -> "Connection":
        """Return a connection that is logged in; times in seconds, heartbeat 0 is off.

        `name` is what RabbitMQ's management shows.

        Raises:
            BrokerError: no address answers, TLS or login fails, or it takes longer than `connect_timeout`.
        """
        connection = cls(address, name, heartbeat=heartbeat, answer_timeout=answer_timeout)
        try:
            async with asyncio.timeout(connect_timeout):
                await reach(address, connection, connect_timeout)
                await connection._log_in()
        except TimeoutError:
            error = silent(address, connect_timeout)
            connection.fail(error)
            raise error from None
        except BaseException:
            connection.fail(BrokerError("given up while connecting"))
            raise
        return connection

    @property
    def version(self) -> tuple[int, int]:
        """Return the broker's major and minor version; zeros while it is not known."""
        numbers = _VERSION.match(self.server)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)

    @property
    def silent(self) -> bool:
        """Tell whether nothing was heard for a heartbeat interval, in which the broker sends two heartbeats."""
        return self._silent_ticks >= 2

    async def call(self, method: Frame, *answers: type[Frame]) -> Frame:
        """Send a method and return its answer, one of the types `answers`; one call at a time.

        Cancelled or unanswered, it ends the connection, because the next answer would be taken for its own.

        Raises:
            RefusedError: the broker closed the channel for it.
            BrokerError: the connection is lost, or no answer came in time.
        """
        if not self._channel_open:
            await self._exchange(commands.Channel.Open(), commands.Channel.OpenOk)
            self._channel_open = True
        return await self._exchange(method, *answers)

    async def reopen(self) -> None:
        """Close the channel, so that the next call opens a new one.

        Raises:
            BrokerError: the connection is lost, or no answer came in time.
        """
        await self._exchange(commands.Channel.Close(200, "to be opened anew", 0, 0), commands.Channel.CloseOk)
        self._channel_open = False

    def send(self, data: bytes) -> None:
        """Send octets with the others of this turn of the event loop; nothing happens once closed."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def send_all(self, parts: Sequence[bytes]) -> None:
        """Send several parts, under load a little later with more of them (`gathering`)."""
        if not self._out:
            self._gathering.begin()
        self._out += parts

    def flush(self) -> None:
        """Hand what was sent to the network now."""
        out, self._out = self._out, []
        if out and self._transport is not None and not self.closed.done():
            self._gathering.ended(len(out))
            self._spoke = True
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def fail(self, error: BrokerError) -> None:
        """End the connection at once for that reason; the first reason counts."""
        self._end(error)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Send what is waiting, say goodbye and end the connection; safe to call twice, never raises."""
        if not self.closed.done() and self._answer is None:
            goodbye = commands.Connection.Close(200, "mailq closes", 0, 0)
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._exchange(goodbye, commands.Connection.CloseOk, channel=0)
            except (BrokerError, TimeoutError):
                pass  # it is over either way
        self.fail(BrokerError("closed by mailq"))

    # The asyncio side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        """Take apart what arrived and hand it on."""
        self._heard = True
        try:
            events = self._reader.feed(data)
        except FrameError as error:
            seen = f"{self._address} does not speak AMQP 0-9-1 as expected: {error}"
            self.fail(BrokerError(seen) if self._logged_in else UnreachableError(seen, OTHER_PROTOCOL))
            return
        receiver = self.receiver
        for event in events:
            if isinstance(event, Frame):
                self._take(event)
            elif receiver is not None:
                receiver.received(event)

    def pause_writing(self) -> None:
        """Note that the network takes no more."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Note that the network takes more again."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, if it has not ended already."""
        why = printable(str(exc).encode()) if exc else "closed by the peer"
        if self._logged_in:
            self._end(BrokerError(f"connection to {self._address} lost: {why}"))
        else:
            self._end(hung_up(self._address, why))

    # Opening.

    async def _log_in(self) -> None:
        """Walk through start, tune and open with PLAIN, then open the channel."""
        address = self._address
        self.send(PROTOCOL_HEADER)
        start = cast("commands.Connection.Start", await self._wait(commands.Connection.Start))
        self.server = str((start.server_properties or {}).get("version", ""))
        if "PLAIN" not in str(start.mechanisms).split():
            raise BrokerError(f"RabbitMQ at {address} does not offer to log in with PLAIN")
        properties: FieldTable = {
            "product": "mailq",
            "version": __version__,
            "connection_name": self._name,
            "pid": os.getpid(),
            "capabilities": _CAPABILITIES,
        }
        response = f"\0{address.user}\0{address.password}"
        login = commands.Connection.StartOk(properties, "PLAIN", response, "en_US")
        answer = await self._exchange(login, commands.Connection.Tune, channel=0)
        tune = cast("commands.Connection.Tune", answer)
        self.frame_max = min(tune.frame_max or MAX_FRAME, MAX_FRAME)
        self._reader.frame_max = self.frame_max
        self._send_method(commands.Connection.TuneOk(1, self.frame_max, self._heartbeat), 0)
        if self._heartbeat:
            self._ticker = self._loop.call_later(self._heartbeat / 2, self._tick)
        await self._exchange(ConnectionOpen(address.vhost), commands.Connection.OpenOk, channel=0)
        self._logged_in = True
        await self._exchange(commands.Channel.Open(), commands.Channel.OpenOk)
        self._channel_open = True

    # While open.

    def _send_method(self, method: Frame, channel: int) -> None:
        self.send(codec.marshal(method, channel))

    async def _exchange(self, method: Frame, *answers: type[Frame], channel: int = 1) -> Frame:
        self._send_method(method, channel)
        return await self._wait(*answers)

    async def _wait(self, *answers: type[Frame]) -> Frame:
        """Return the next method of one of these types."""
        if self.closed.done():
            raise again(self.closed.result())
        assert self._answer is None, "one call at a time"
        self._answer, self._answers = self._loop.create_future(), answers
        try:
            async with asyncio.timeout(self._answer_timeout):
                return await self._answer
        except TimeoutError:
            error = BrokerError(f"RabbitMQ at {self._address} gave no answer within {self._answer_timeout:g} s")
            self.fail(error)
            raise error from None
        except asyncio.CancelledError:
            self.fail(BrokerError("a call to RabbitMQ was cancelled"))
            raise
        finally:
            self._answer = None

    def _take(self, method: Frame) -> None:
        """Handle a method: what concerns the connection here, the answer to a call, the rest elsewhere."""
        if isinstance(method, commands.Connection.Close):
            self._send_method(commands.Connection.CloseOk(), 0)
            self.flush()
            where = "" if self._logged_in else f" (user {self._address.user!r}, vhost {self._address.vhost!r})"
            reason = f"{method.reply_code} {_safe(method.reply_text)}{where}"
            seen = f"RabbitMQ at {self._address} closed the connection: {reason}"
            self._end(BrokerError(seen) if self._logged_in else turned_away(seen, method.reply_code))
            assert self._transport is not None
            self._transport.close()
        elif isinstance(method, commands.Channel.Close):
            self._refuse(RefusedError(method.reply_code or 0, _safe(method.reply_text)))
        elif isinstance(method, self._answers) and self._answer is not None and not self._answer.done():
            self._answer.set_result(method)
        elif self.receiver is None:
            return
        elif isinstance(method, commands.Connection.Blocked):
            self.receiver.blocked(_safe(method.reason))
        elif isinstance(method, commands.Connection.Unblocked):
            self.receiver.blocked(None)
        else:
            self.receiver.received(method)

    def _refuse(self, error: RefusedError) -> None:
        """Take a closed channel: a refused call, or, where deliveries or confirms depend on it, the end."""
        self._send_method(commands.Channel.CloseOk(), 1)
        self._channel_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
            if self.receiver is None:
                return
        self.flush()
        self._end(error)
        assert self._transport is not None
        self._transport.close()

    def hold(self, *, held: bool) -> None:
        """Stop or go on to read, so that what is received stays bounded; a peer that is not read is not silent."""
        if held != self._held and not self.closed.done() and self._transport is not None:
            self._held = held
            self._transport.pause_reading() if held else self._transport.resume_reading()

    def _tick(self) -> None:
        """Twice in a heartbeat interval: be heard, and give up after two intervals of silence."""
        self._silent_ticks = 0 if self._heard or self._held else self._silent_ticks + 1
        if self._silent_ticks >= 4:
            silence = f"no sign of life from RabbitMQ at {self._address} for {2 * self._heartbeat} s"
            self.fail(BrokerError(silence))
            return
        if not self._spoke and self._transport is not None:
            self._transport.write(HEARTBEAT)
        self._heard = self._spoke = False
        self._ticker = self._loop.call_later(self._heartbeat / 2, self._tick)

    def _end(self, error: BrokerError) -> None:
        if self.closed.done():
            return
        self.closed.set_result(error)
        self.writable.set()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self.receiver is not None:
            self.receiver.lost(error)


def _safe(text: object) -> str:
    """Return the broker's text without control characters, bounded."""
    return printable(str(text).encode(errors="replace"), limit=500)
