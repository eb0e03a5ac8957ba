"""A connection that was opened, plain or TLS: octets out, replies in, and how it ended.

It may be written ahead (PIPELINING), for replies are handed out in order, however the stream was cut. One of them is
awaited at a time, and the clock of that is kept here: a timer that is set once and looks whether the deadline has
moved on.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable
from itertools import islice

from mailq.core.smtp.failure import Trouble
from mailq.core.smtp.reply import MalformedReplyError, Reply, ReplyReader
from mailq.core.states import Kind

MAX_UNREAD = 32
"""Replies that may wait to be read; a server that sends more talks to itself."""


class Stream(asyncio.Protocol):
    """The part of a wire that carries transactions (see `ports.wire.Wire`), as the protocol of its transport."""

    def __init__(self) -> None:
        self.sent = 0
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline = self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reader = ReplyReader()
        self._queue: deque[Reply] = deque()
        self._waiter: asyncio.Future[Reply] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._trouble: Trouble | None = None

    @property
    def alive(self) -> bool:
        """Tell whether the peer may still be spoken to: open, in step, nothing unread."""
        if self._transport is None or self._transport.is_closing():
            return False
        return self._trouble is None and not self._queue and not self._reader.pending

    @property
    def unread(self) -> bool:
        """Tell whether a reply waits to be read."""
        return bool(self._queue)

    @property
    def problem(self) -> Trouble | None:
        """Return what ended the stream, None while it goes on."""
        return self._trouble

    def forget_unread(self) -> None:
        """Drop all that came so far and was not read, and begin to read anew."""
        self._reader = ReplyReader()
        self._queue.clear()
        self._trouble = None

    def write(self, data: bytes) -> None:
        """Send octets without waiting; a lost connection is noticed by `reply`."""
        if self._transport is not None and not self._transport.is_closing():
            self.sent += len(data)
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the connection can take more, or is lost (write backpressure)."""
        while self._paused and self._trouble is None and not self._queue:
            self._writable = self._loop.create_future()
            await self._writable

    def reply(self, seconds: float) -> Awaitable[Reply]:
        """Return the next reply in order, or what came instead; `TimeoutError` when nothing does in so many seconds."""
        waiter = self._waiter = self._loop.create_future()
        if self._queue or self._trouble is not None:
            self._wake()
        else:
            self._run_clock(seconds)
        return waiter

    def ready(self) -> Reply | None:
        """Return the next reply if it has come already."""
        return self._queue.popleft() if self._queue else None

    def data_received(self, data: bytes) -> None:
        """Take what the peer says."""
        if self._trouble is not None:
            return
        try:
            self._queue.extend(self._reader.feed(data))
        except MalformedReplyError as trouble:
            self._queue.extend(trouble.replies)
            self._end(Trouble(Kind.INVALID, str(trouble)))
        if len(self._queue) > MAX_UNREAD:
            self._queue = deque(islice(self._queue, MAX_UNREAD))  # the first may well be an answer
            self._end(Trouble(Kind.INVALID, "the server sends replies that nobody asked for"))
        self._wake()

    def eof_received(self) -> bool:
        """Take the end of the stream."""
        self._take_rest()
        self._end(Trouble(Kind.LOST, "the server closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        self._take_rest()
        self._end(Trouble(Kind.LOST, words(exc) if exc else "the server closed the connection"))

    def pause_writing(self) -> None:
        """Hold what waits to be written."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let it go on."""
        self._paused = False
        self._wake()

    def _take_rest(self) -> None:
        """Take the answer that the end of the stream has cut off: a code that can be read decides."""
        if self._trouble is None and self._reader.pending:
            self._queue.extend(self._reader.rest())

    def _end(self, trouble: Trouble) -> None:
        self._trouble = self._trouble or trouble
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _run_clock(self, seconds: float) -> None:
        """Set the clock of a wait; a timer that runs already looks again by itself, which is what makes it cheap."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._due > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        self._due = self._deadline
        self._timer = self._loop.call_at(self._due, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._set_timer()
        else:
            self._waiter.set_exception(TimeoutError())
            self._waiter = None

    def _wake(self) -> None:
        """Let go on who waits for what is there now."""
        waiter, writable, trouble = self._waiter, self._writable, self._trouble
        if waiter is not None and (self._queue or trouble is not None):
            self._waiter = None  # it would hold what it raises, and that who waited, and with that this wire
            if waiter.done():  # given up
                pass
            elif self._queue:
                waiter.set_result(self._queue.popleft())
            elif trouble is not None:
                waiter.set_exception(Trouble(trouble.kind, trouble.text))
        if writable is not None and not writable.done():
            writable.set_result(None)


def words(trouble: Exception) -> str:
    """Return what a system error says, without Python's decoration."""
    if isinstance(trouble, OSError) and trouble.errno and trouble.errno > 0:
        return os.strerror(trouble.errno)
    return str(trouble) or type(trouble).__name__
