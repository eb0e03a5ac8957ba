"""What the sink has taken: messages in memory within a limit, and in a directory if one is given.

A message is on disk before it is acknowledged: `NAME.eml` with its octets first, then `NAME.json` with
envelope and session. Also remembers who has called before, which is all that greylisting needs.
"""

import asyncio
import itertools
import os
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

VISITORS = 100_000
"""Pairs of sender and recipient that are remembered for greylisting."""

_OVERHEAD = 1024
"""Octets that a message counts beyond its content."""

Parameters = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Visit:
    """The facts of one SMTP session when a message was taken in it."""

    connection: int
    peer: str
    helo: str
    esmtp: bool
    tls: str | None = None
    cipher: str | None = None
    user: str | None = None
    mechanism: str | None = None


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO: the address and its parameters, names in capitals."""

    address: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was taken: `content` is its octets with dots unstuffed.

    `number` counts all messages of the sink from 1, `nth` those of the connection.
    """

    number: int
    time: datetime
    sender: str
    parameters: Parameters
    recipients: tuple[Recipient, ...]
    content: bytes
    session: Visit
    nth: int

    @property
    def recipient(self) -> str:
        """The first, most often only, recipient's address."""
        return self.recipients[0].address

    def as_json(self) -> dict[str, Any]:
        """Return everything but the content."""
        session = self.session
        return {
            "number": self.number,
            "time": self.time.isoformat(timespec="milliseconds"),
            "sender": self.sender,
            "parameters": dict(self.parameters),
            "recipients": [{"address": to.address, "parameters": dict(to.parameters)} for to in self.recipients],
            "size": len(self.content),
            "session": {name: getattr(session, name) for name in Visit.__slots__},
            "nth": self.nth,
        }


class Inbox:
    """Takes messages, and lets tests and commands wait for them."""

    def __init__(self, directory: Path | None = None, keep: int = 256 * 1024 * 1024) -> None:
        """Make an empty inbox that keeps the newest messages, `keep` octets of them at most, in memory."""
        self.accepted = 0
        self._directory = directory
        self._keep = keep
        self._kept = 0
        self._messages: deque[Message] = deque()
        self._numbers = itertools.count(1)
        self._visitors: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._waiters: set[asyncio.Future[None]] = set()
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def messages(self) -> list[Message]:
        """The messages that are kept, oldest first."""
        return list(self._messages)

    def since(self, number: int) -> list[Message]:
        """Return the kept messages after number `number`, oldest first."""
        newer = list(itertools.takewhile(lambda message: message.number > number, reversed(self._messages)))
        return newer[::-1]

    def visits(self, sender: str, recipient: str) -> int:
        """Count one more attempt of `sender` for `recipient` and return how many there were."""
        pair = (sender, recipient)
        count = self._visitors.pop(pair, 0) + 1
        self._visitors[pair] = count
        if len(self._visitors) > VISITORS:
            self._visitors.popitem(last=False)
        return count

    async def take(
        self,
        content: bytes,
        *,
        sender: str,
        parameters: Parameters,
        recipients: tuple[Recipient, ...],
        session: Visit,
        nth: int,
    ) -> Message:
        """Keep a message and return it.

        Raises:
            OSError: it could not be written to the directory; it is not taken.
        """
        number = next(self._numbers)
        message = Message(number, datetime.now(UTC), sender, parameters, recipients, content, session, nth)
        if self._directory is not None:
            await asyncio.to_thread(self._write, self._directory / f"{self._run}-{number:06d}", message)
        self.accepted += 1
        self._messages.append(message)
        self._kept += len(content) + _OVERHEAD
        while self._kept > self._keep:
            self._kept -= len(self._messages.popleft().content) + _OVERHEAD
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return message

    async def wait(self, count: int, timeout: float | None) -> None:  # noqa: ASYNC109 - worded in the error
        """Return when `count` messages were taken since the start.

        Raises:
            TimeoutError: fewer came within `timeout` seconds; says how many.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.accepted < count:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        except TimeoutError:
            raise TimeoutError(f"{self.accepted} of {count} messages came within {timeout} s") from None

    @staticmethod
    def _write(stem: Path, message: Message) -> None:
        stem.with_suffix(".eml").write_bytes(message.content)
        stem.with_suffix(".json").write_bytes(orjson.dumps(message.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
