"""The sink's side of one SMTP session (RFC 5321), from the greeting to the end.

Strict where a client can be wrong: lines end with CRLF, parameters need their extension and must be
well formed, nothing is sent ahead of an answer unless PIPELINING (RFC 2920) was offered. `_proceed` is the
one place where it misbehaves: every answer belongs to a state, and a fault of the server or
the behaviour that an address asks for takes the place of the answer there.
"""

import asyncio
import base64
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

from mailq.core.states import State
from mailq.sink.behaviours import Action, Behaviour, of_recipient, of_sender, status_of
from mailq.sink.channel import Channel, LineTooLongError, PeerGoneError
from mailq.sink.inbox import Inbox, Parameters, Recipient, Visit
from mailq.sink.login import MECHANISMS, STARTS_WITH_CLIENT, Login
from mailq.sink.syntax import MAIL_PARAMETERS, RCPT_PARAMETERS, RefusedError, command, path, response

EXTENSIONS = frozenset({"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "DSN", "ENHANCEDSTATUSCODES"})
"""Offered unless switched off; STARTTLS and AUTH are offered when there is a certificate, or a user."""

MAX_LINE = 4096
MAX_AUTH_LINE = 12288
MAX_RECIPIENTS = 1000
MAX_ERRORS = 100
LAST_IN_GROUP = frozenset({"EHLO", "HELO", "STARTTLS", "AUTH", "DATA", "QUIT"})
"""Commands whose answer a client has to await before it goes on (RFC 2920 section 3.1)."""

GARBAGE = b"\x00\x16\xff this is no SMTP reply\r\n"


@dataclass(frozen=True, slots=True)
class Options:
    """What a sink offers, demands and does wrong; the same for all its sessions."""

    hostname: str = "sink.test"
    extensions: frozenset[str] = EXTENSIONS
    tls: ssl.SSLContext | None = None
    implicit_tls: bool = False
    require_tls: bool = False
    users: Mapping[str, str] = field(default_factory=dict)
    mechanisms: tuple[str, ...] = tuple(MECHANISMS)
    plaintext_auth: bool = False
    require_auth: bool = False
    faults: Mapping[State, Behaviour] = field(default_factory=dict)
    max_size: int = 50 * 1024 * 1024
    timeout: float = 300.0


class HangUpError(Exception):
    """The conversation is over; the connection is to be closed."""


class Conversation:
    """One session on one channel; `run` is all there is to do with it."""

    def __init__(self, channel: Channel, inbox: Inbox, options: Options, number: int) -> None:
        self._channel = channel
        self._inbox = inbox
        self._options = options
        self._number = number
        self._taken = 0
        self._errors = 0
        self._helo = ""
        self._esmtp = False
        self._user: str | None = None
        self._mechanism: str | None = None
        self._forget()

    def _forget(self) -> None:
        """Return to the state without a transaction (RSET)."""
        self._sender: str | None = None
        self._parameters: Parameters = {}
        self._recipients: list[Recipient] = []
        self._asked: dict[State, Behaviour] = {}

    async def run(self) -> None:
        """Hold the whole conversation; returns when the connection is closed or being closed."""
        try:
            if await self._proceed(State.INTRO):
                self._say(220, "", f"{self._options.hostname} ESMTP mailq sink")
            while True:
                await self._command()
        except (PeerGoneError, HangUpError):
            self._channel.close()
        except asyncio.CancelledError:
            self._channel.abort()
            raise

    async def _command(self) -> None:
        """Read one command and answer it."""
        try:
            await self._obey(*command(await self._channel.line(MAX_LINE)))
        except RefusedError as refused:
            self._say(refused.code, refused.status, refused.text)
            self._errors += 1
            if self._errors > MAX_ERRORS:
                self._say(421, "4.7.0", "too many errors")
                raise HangUpError from None
        except LineTooLongError:
            self._say(500, "5.5.6", "line too long")
            raise HangUpError from None

    async def _obey(self, verb: str, argument: str) -> None:
        handler = self._HANDLERS.get(verb)
        if handler is None:
            raise RefusedError(500, "5.5.1", "no such command")
        if self._channel.pending and (verb in LAST_IN_GROUP or not self._offers("PIPELINING")):
            self._say(503, "5.5.0", "improper command pipelining")
            raise HangUpError
        await handler(self, argument)

    def _offers(self, extension: str) -> bool:
        if extension == "AUTH":
            encrypted = self._options.plaintext_auth or self._channel.security is not None
            return self._esmtp and bool(self._options.users) and encrypted
        if extension == "STARTTLS":
            return self._options.tls is not None and self._channel.security is None
        return self._esmtp and extension in self._options.extensions

    def _say(self, code: int, status: str, *texts: str) -> None:
        if status and self._offers("ENHANCEDSTATUSCODES"):
            texts = tuple(f"{status} {text}" for text in texts)
        lines = [f"{code}-{text}\r\n" for text in texts[:-1]]
        self._channel.write("".join([*lines, f"{code} {texts[-1]}\r\n"]).encode())

    async def _proceed(self, state: State, asked: Behaviour | None = None) -> bool:
        """Tell whether the usual answer is to be given in `state`; if not, what was asked for is done."""
        trouble = self._options.faults.get(state) or asked
        if trouble is None:
            return True
        if trouble.delay:
            await self._channel.flush()
            await asyncio.sleep(trouble.delay)
        if trouble.code:
            status = trouble.status or status_of(trouble.code)
            self._say(trouble.code, status, trouble.text or f"as asked for at {state}")
            if trouble.code == 421:
                raise HangUpError
            return False
        match trouble.action:
            case Action.STALL:
                await self._channel.silence()
            case Action.GARBAGE:
                self._channel.write(GARBAGE)
                return False
            case Action.RESET:
                await self._channel.flush()
                self._channel.reset()
                raise HangUpError
            case Action.DROP:
                raise HangUpError
        return True

    async def _ehlo(self, argument: str) -> None:
        if not argument.strip():
            raise RefusedError(501, "5.5.4", "EHLO needs a name")
        self._forget()
        self._helo, self._esmtp = argument.strip(), True
        if await self._proceed(State.EHLO):
            self._say(250, "", self._options.hostname, *self._keywords())
        else:
            self._esmtp = False

    def _keywords(self) -> list[str]:
        words = {"SIZE": f"SIZE {self._options.max_size}", "AUTH": f"AUTH {' '.join(self._options.mechanisms)}"}
        offered = [*sorted(self._options.extensions), "STARTTLS", "AUTH"]
        return [words.get(name, name) for name in offered if self._offers(name)]

    async def _helo_(self, argument: str) -> None:
        if not argument.strip():
            raise RefusedError(501, "", "HELO needs a name")
        self._forget()
        self._helo, self._esmtp = argument.strip(), False
        if await self._proceed(State.HELO):
            self._say(250, "", self._options.hostname)

    async def _starttls(self, argument: str) -> None:
        context = self._options.tls
        if context is None or not self._offers("STARTTLS"):
            raise RefusedError(502, "5.5.1", "STARTTLS is not offered")
        if argument:
            raise RefusedError(501, "5.5.4", "STARTTLS takes no parameter")
        if not await self._proceed(State.STARTTLS):
            return
        self._say(220, "2.0.0", "go ahead")
        fault = self._options.faults.get(State.STARTTLS)
        if fault and fault.action is Action.BROKEN:
            await self._channel.flush()
            await self._channel.arrival()
            self._channel.write(GARBAGE)
            raise HangUpError
        await self._channel.start_tls(context)
        self._forget()
        self._helo, self._esmtp, self._user = "", False, None

    async def _auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        name = mechanism.upper()
        self._check_auth(name, initial)
        challenge = f"<{secrets.token_hex(8)}@{self._options.hostname}>".encode()
        dialogue = MECHANISMS[name](self._options.users, challenge)
        end = await self._login(dialogue, response(initial.encode()) if initial else None)
        if end is None or not await self._proceed(end[0]):
            return
        if end[1] is None:
            raise RefusedError(535, "5.7.8", "wrong user or password")
        self._user, self._mechanism = end[1], name
        self._say(235, "2.7.0", "welcome")

    def _check_auth(self, mechanism: str, initial: str) -> None:
        if self._user is not None or self._sender is not None:
            raise RefusedError(503, "5.5.1", "AUTH is out of place")
        if self._options.users and self._esmtp and not self._offers("AUTH"):
            raise RefusedError(538, "5.7.11", "encryption is required before AUTH")
        if not self._offers("AUTH") or mechanism not in self._options.mechanisms:
            raise RefusedError(504, "5.5.4", "no such mechanism")
        if initial and mechanism not in STARTS_WITH_CLIENT:
            raise RefusedError(501, "5.7.0", "this mechanism takes no initial response")

    async def _login(self, dialogue: Login, initial: bytes | None) -> tuple[State, str | None] | None:
        """Hold the AUTH exchange and return its end; None if a fault ended it."""
        state, question = next(dialogue)
        answer = initial
        while True:
            if answer is None:
                if not await self._proceed(state):
                    return None
                self._channel.write(b"334 " + base64.b64encode(question) + b"\r\n")
                answer = response(await self._channel.line(MAX_AUTH_LINE))
            try:
                state, question = dialogue.send(answer)
            except StopIteration as end:
                return cast("tuple[State, str | None]", end.value)
            answer = None

    async def _mail(self, argument: str) -> None:
        if not self._helo:
            raise RefusedError(503, "5.5.1", "EHLO comes first")
        if self._sender is not None:
            raise RefusedError(503, "5.5.1", "there is a sender already")
        if self._options.require_tls and self._channel.security is None:
            raise RefusedError(530, "5.7.0", "STARTTLS comes first")
        if self._options.require_auth and self._user is None:
            raise RefusedError(530, "5.7.0", "AUTH comes first")
        address, parameters = path(argument, "FROM:", MAIL_PARAMETERS, self._offers)
        self._check_ascii(address, international="SMTPUTF8" in parameters)
        if int(parameters.get("SIZE") or 0) > self._options.max_size:
            raise RefusedError(552, "5.3.4", "message too big")
        if await self._proceed(State.MAILFROM, of_sender(address.rpartition("@")[0])):
            self._sender, self._parameters = address, parameters
            self._say(250, "2.1.0", "ok")

    async def _rcpt(self, argument: str) -> None:
        if self._sender is None:
            raise RefusedError(503, "5.5.1", "MAIL comes first")
        address, parameters = path(argument, "TO:", RCPT_PARAMETERS, self._offers)
        if not address:
            raise RefusedError(501, "5.1.3", "no address")
        self._check_ascii(address, international="SMTPUTF8" in self._parameters)
        if len(self._recipients) >= MAX_RECIPIENTS:
            raise RefusedError(452, "4.5.3", "too many recipients")
        asked = of_recipient(address.rpartition("@")[0])
        if asked and asked.times and self._inbox.visits(self._sender, address) > asked.times:
            asked = None
        if await self._proceed(State.RCPTTO, asked if asked and asked.at is State.RCPTTO else None):
            if asked:
                self._asked.setdefault(asked.at, asked)
            self._recipients.append(Recipient(address, parameters))
            self._say(250, "2.1.5", "ok")

    def _check_ascii(self, address: str, *, international: bool) -> None:
        if not address.isascii() and not international:
            raise RefusedError(553, "5.6.7", "address needs SMTPUTF8")

    async def _data(self, argument: str) -> None:
        if argument:
            raise RefusedError(501, "5.5.4", "DATA takes no parameter")
        if self._sender is None:
            raise RefusedError(503, "5.5.1", "MAIL comes first")
        if not self._recipients:
            raise RefusedError(554, "5.5.1", "no valid recipients")
        if await self._proceed(State.DATA, self._asked.get(State.DATA)):
            self._say(354, "", "end with a dot on a line of its own")
            await self._message(self._sender)
        self._forget()

    async def _message(self, sender: str) -> None:
        asked = self._asked.get(State.MESSAGE)
        if asked and asked.action is Action.CUT:
            await self._channel.arrival()
            raise HangUpError
        content = await self._channel.message(self._options.max_size)
        if content is None:
            raise RefusedError(552, "5.3.4", "message too big")
        if not await self._proceed(State.MESSAGE, asked):
            return
        self._taken += 1
        recipients = tuple(self._recipients)
        try:
            taken = await self._inbox.take(
                content,
                sender=sender,
                parameters=self._parameters,
                recipients=recipients,
                session=self._visit(),
                nth=self._taken,
            )
        except OSError:
            raise RefusedError(452, "4.3.1", "message could not be stored") from None
        if asked and asked.action is Action.FORGET:
            raise HangUpError
        self._say(250, "2.0.0", f"taken as {taken.number}")

    def _visit(self) -> Visit:
        tls = self._channel.security
        cipher = tls.cipher() if tls else None
        return Visit(
            connection=self._number,
            peer=self._channel.peer,
            helo=self._helo,
            esmtp=self._esmtp,
            tls=tls.version() if tls else None,
            cipher=cipher[0] if cipher else None,
            user=self._user,
            mechanism=self._mechanism,
        )

    async def _rset(self, _argument: str) -> None:
        self._forget()
        self._say(250, "2.0.0", "ok")

    async def _noop(self, _argument: str) -> None:
        self._say(250, "2.0.0", "ok")

    async def _vrfy(self, _argument: str) -> None:
        self._say(252, "2.5.0", "send mail and see")

    async def _quit(self, _argument: str) -> None:
        self._say(221, "2.0.0", "bye")
        raise HangUpError

    _HANDLERS: ClassVar[dict[str, Callable[["Conversation", str], Awaitable[None]]]] = {
        "EHLO": _ehlo,
        "HELO": _helo_,
        "STARTTLS": _starttls,
        "AUTH": _auth,
        "MAIL": _mail,
        "RCPT": _rcpt,
        "DATA": _data,
        "RSET": _rset,
        "NOOP": _noop,
        "VRFY": _vrfy,
        "QUIT": _quit,
    }
