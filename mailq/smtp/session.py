"""One conversation with one mail server. Read `open`, then `deliver`: that is the state machine.

`step` is the only place where a state is entered, its clock runs, and trouble becomes a
`Failure`. Order is code, facts are tables, trouble has one door. Timeouts are RFC 5321 section
4.5.3.2 unless the operator says otherwise.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from secrets import token_hex
from time import monotonic
from typing import Any, TypeVar

from mailq.core.failure import Failure, Postponed, Trouble
from mailq.core.journal import JournalError
from mailq.core.mime import payload
from mailq.core.reply import Reply
from mailq.core.result import Trail
from mailq.core.routing import Login, Route, Tls
from mailq.core.states import Kind, State
from mailq.core.transcript import masked, without
from mailq.ports import Claim, Wire
from mailq.smtp import auth
from mailq.smtp.envelope import Extensions
from mailq.smtp.transaction import Transaction, check

T = TypeVar("T")

_MESSAGE = State.MESSAGE

BLOCK = 256 * 1024
"""Octets of a message written before the connection is asked whether it can take more."""


class Session:
    """An SMTP session over one wire; opened once, then good for messages until it is retired."""

    __slots__ = (
        "_facts",
        "_open",
        "_retired",
        "_secrets",
        "messages",
        "offered",
        "quit_timeout",
        "route",
        "timeouts",
        "wire",
    )

    def __init__(self, wire: Wire, route: Route, timeouts: Mapping[State, float], quit_timeout: float) -> None:
        self.wire = wire
        self.route = route
        self.timeouts = timeouts
        self.quit_timeout = quit_timeout
        self.messages = 0
        self.offered: Extensions = {}
        """What the server offered in its last EHLO reply."""
        self._facts: dict[str, Any] = {}
        self._secrets: tuple[str, ...] = ()
        self._open = False
        self._retired = False

    @property
    def reusable(self) -> bool:
        """Tell whether another message may be sent: in step with the peer, and nothing unread."""
        return not self._retired and self.wire.alive

    async def open(self, trail: Trail) -> None:
        """Walk bind, connect, intro, ehlo, starttls and login.

        Raises:
            Failure: the first state that did not come out well; the wire is closed.
        """
        try:
            await self._walk(trail)
        except BaseException:
            self.retire()
            raise
        finally:
            self._note_sent(trail, 0)

    async def deliver(self, trail: Trail, mail: str, rcpt: str, content: bytes, claim: Claim) -> Reply:
        """Walk mailfrom, rcptto, data and message; return the answer to the final dot.

        Raises:
            Failure: who refused what, or what became of the connection.
            Postponed, JournalError: there is no leave to hand it over; the receiver has not got it.
        """
        try:
            self._begin(trail)
            if self._open or not self.wire.alive:
                await self._come_to_order(trail)
            await self._transact(trail, mail, rcpt)
            trail.said.append(len(content))
            message = payload(content)
            if len(message) > BLOCK:
                message = await self._send_ahead(trail, message)
            self._hand_over(trail, message, claim)
            reply = self._arrived(trail, _MESSAGE) or await self._awaited(trail, _MESSAGE)
            self._judge(trail, reply)
        except (asyncio.CancelledError, Postponed, JournalError):
            self.retire()
            raise
        finally:
            self._note_sent(trail, len(content) if trail.in_doubt else 0)
        trail.facts["dsn"] = "dsn" in self.offered
        return reply

    async def probe(self, trail: Trail, mail: str, rcpt: str) -> Reply:
        """Walk mailfrom and rcptto and take it back with RSET: a dry run; return the answer to RCPT.

        Raises:
            Failure: who refused what, or what became of the connection.
        """
        try:
            self._begin(trail)
            if self._open or not self.wire.alive:
                await self._come_to_order(trail)
            reply = await self._transact(trail, mail, rcpt, data=False)
            with contextlib.suppress(Failure):  # it has answered; the session is retired, that is all
                await self._reset(Trail())
        except asyncio.CancelledError:
            self.retire()
            raise
        finally:
            self._note_sent(trail, 0)
        trail.facts["dsn"] = "dsn" in self.offered
        return reply

    def _begin(self, trail: Trail) -> None:
        """Begin with the next message."""
        self.messages += 1
        trail.facts.update(self._facts, messages=self.messages)
        if not trail.said:
            trail.said.append(f"session {self._facts['session']}, message {self.messages}")

    async def _come_to_order(self, trail: Trail) -> None:
        """See that the session is in step and has no message open, or fail."""
        if not self.wire.alive:
            await self._listen(trail)
        if self._open:
            await self._reset(trail)

    async def quit(self) -> None:
        """Say QUIT if the peer may still be spoken to, and close; never raises."""
        try:
            if self.reusable:
                self.wire.write(b"QUIT\r\n")
                await self.wire.reply(self.quit_timeout)
                await self.wire.reply(self.quit_timeout)  # the peer closes: until then it counts this connection
        except (Trouble, TimeoutError):
            pass
        finally:
            self.retire()

    def retire(self) -> None:
        """Close the connection: never speak here again."""
        self._retired = True
        self.wire.close()

    async def ask(self, trail: Trail, state: State, exchange: Awaitable[Reply]) -> Reply:
        """Do a step that is answered; the answer must be the one this state hopes for."""
        reply = self._heard(trail, await self.step(trail, state, exchange))
        trouble = check(state, reply)
        if trouble:
            raise trouble
        return reply

    async def step(self, trail: Trail, state: State, exchange: Awaitable[T]) -> T:
        """Enter `state` and await its one exchange, or fail in it."""
        trail.enter(state)
        started = monotonic()
        try:
            async with asyncio.timeout(self.timeouts[state]):
                return await exchange
        except (Trouble, TimeoutError) as trouble:
            raise self._ended(state, trouble) from trouble
        finally:
            trail.spent(state, monotonic() - started)

    def _arrived(self, trail: Trail, state: State) -> Reply | None:
        """Return the reply in `state` if it has come already: replies to what was written together come together."""
        reply = self.wire.ready()
        if reply is None:
            return None
        trail.enter(state)
        trail.spent(state, 0.0)
        return self._heard(trail, reply)

    async def _awaited(self, trail: Trail, state: State) -> Reply:
        """Enter `state` and wait for the next reply to what was written, or fail in it; the wire keeps the clock."""
        trail.enter(state)
        started = monotonic()
        try:
            reply = await self.wire.reply(self.timeouts[state])
        except (Trouble, TimeoutError) as trouble:
            raise self._ended(state, trouble) from trouble
        finally:
            trail.spent(state, monotonic() - started)
        return self._heard(trail, reply)

    def _ended(self, state: State, trouble: Trouble | TimeoutError) -> Failure:
        """Return the failure of an exchange that gave no answer, after which nothing can be said here any more."""
        self.retire()
        if isinstance(trouble, Trouble):
            return Failure(state, trouble.kind, without(self._secrets, trouble.text))
        return Failure(state, Kind.TIMEOUT)

    def _heard(self, trail: Trail, reply: Reply) -> Reply:
        """Note a reply, without what was sent as a secret: some servers repeat what they do not like."""
        if self._secrets:
            reply = reply._replace(text=without(self._secrets, reply.text))
        trail.heard(reply)
        return reply

    async def _walk(self, trail: Trail) -> None:
        wire, route = self.wire, self.route
        trail.said.append(f"connecting to {route.target.ip} port {route.target.port}")
        await self.step(trail, State.BIND, wire.bind(route.source))
        await self.step(trail, State.CONNECT, wire.connect())
        trail.said.append(f"connected from {wire.local}")
        self._learn(trail, {"from": wire.local, "from_port": wire.local_port, "to": route.target.ip})
        self._learn(trail, {"messages": 1, "session": token_hex(8)})
        if route.tls is Tls.IMPLICIT:
            await self.step(trail, State.STARTTLS, wire.handshake())
            self._learn_security(trail)
        intro = await self.ask(trail, State.INTRO, wire.greeting())
        name = intro.text.split(maxsplit=1)
        self._learn(trail, {"mta": name[0][:255]} if name else {})
        await self._hello(trail)
        if route.tls in (Tls.OPPORTUNISTIC, Tls.REQUIRED):
            await self._starttls(trail)
        if route.login:
            await self._login(trail, route.login)
        wire.take_over()

    def _learn(self, trail: Trail, facts: Mapping[str, Any]) -> None:
        """Note facts of the connection: they stand in this result and in those of later messages."""
        self._facts.update(facts)
        trail.facts.update(facts)

    def _learn_security(self, trail: Trail) -> None:
        security = self.wire.security()
        self._learn(trail, security)
        trail.said.append(f"encrypted: {security.get('cipher', {}).get('protocol', 'TLS')}")

    def _note_sent(self, trail: Trail, data: int) -> None:
        if "to" in self._facts:
            trail.facts["sent"] = {"connection": self.wire.sent, "data": data}

    async def _command(self, trail: Trail, state: State, line: str, command: str = "") -> Reply:
        """Send a line; of one that belongs to a `command` with secrets nothing else may be told."""
        trail.facts["command"] = command or line
        trail.said.append((masked(line, command) if command else line,))
        return self._heard(trail, await self.step(trail, state, self.wire.command(line)))

    async def _hello(self, trail: Trail) -> None:
        name = self.route.source.ehlo
        reply = await self._command(trail, State.EHLO, f"EHLO {name}")
        self.offered = extensions(reply) if reply.positive else {}
        if reply.permanent:
            reply = await self._command(trail, State.HELO, f"HELO {name}")
        trouble = check(trail.state, reply)
        if trouble:
            raise trouble

    async def _starttls(self, trail: Trail) -> None:
        if "starttls" in self.offered:
            trail.facts["command"] = "STARTTLS"
            trail.said.append(("STARTTLS",))
            await self.ask(trail, State.STARTTLS, self.wire.starttls())
            self._learn_security(trail)
            await self._hello(trail)
        elif self.route.tls is Tls.REQUIRED:
            trail.enter(State.STARTTLS)
            raise Failure(State.STARTTLS, Kind.ERROR, "TLS is required and the server does not offer STARTTLS")

    async def _login(self, trail: Trail, login: Login) -> None:
        encrypted = "cipher" in self._facts
        if not (encrypted or login.plaintext):
            trail.enter(State.STARTTLS)
            raise Failure(State.STARTTLS, Kind.ERROR, "TLS is required before credentials and is not to be had")
        mechanism = auth.choose(self.offered.get("auth", "").upper().split(), encrypted=encrypted)
        self._learn(trail, {"authentication": mechanism})
        self._secrets = auth.secrets(login)
        dialogue = auth.MECHANISMS[mechanism](login)
        state, line = next(dialogue)
        reply = await self._command(trail, state, line, f"AUTH {mechanism}")
        while reply.code // 100 == 3:
            try:
                state, line = dialogue.send(reply)
            except StopIteration:
                break
            reply = await self._command(trail, state, line, f"AUTH {mechanism}")
        trouble = check(state, reply)
        if trouble:
            raise trouble

    async def _listen(self, trail: Trail) -> None:
        """Hear what the server said out of turn before anything is sent: 421, its good-bye, or nonsense."""
        reply = self._arrived(trail, State.MAILFROM) or await self._awaited(trail, State.MAILFROM)
        self.retire()
        if reply.closing:
            raise Failure(State.MAILFROM, Kind.ERROR, reply=reply)
        raise Failure(State.MAILFROM, Kind.INVALID, f"the server spoke out of turn: {reply.code} {reply.text}"[:500])

    async def _reset(self, trail: Trail) -> None:
        """End a transaction that was left open before the next one begins (RFC 5321 section 4.1.1.5)."""
        trail.said.append(("RSET",))
        self.wire.write(b"RSET\r\n")
        try:
            reply = self._arrived(trail, State.MAILFROM) or await self._awaited(trail, State.MAILFROM)
            trouble = check(State.MAILFROM, reply) or self._spoken(State.MAILFROM)
        except Failure as failure:
            trouble = failure
        if trouble:
            self.retire()
            raise Failure(State.MAILFROM, Kind.LOST, f"the session cannot be used again: {trouble.text}") from trouble
        self._open = False

    def _spoken(self, state: State) -> Failure | None:
        """Return the trouble with a reply that is there before its command: all later ones would be shifted."""
        reply = self.wire.ready()
        if reply is None:
            return None
        return Failure(state, Kind.INVALID, f"the server spoke out of turn: {reply.code} {reply.text}"[:500])

    def _say(self, trail: Trail, lines: tuple[str, ...], state: State) -> None:
        """Send commands, the first of which is answered in `state`, unless something stands there in their place."""
        if trouble := self._spoken(state):
            self.retire()
            raise trouble
        trail.said.append(lines)
        self.wire.write("\r\n".join((*lines, "")).encode())

    async def _transact(self, trail: Trail, mail: str, rcpt: str, *, data: bool = True) -> Reply:
        """Send the commands and return the last answer; the first refusal is what is raised."""
        transaction = Transaction(mail, rcpt, pipelining="pipelining" in self.offered, data=data)
        self._open = True
        try:
            while (lines := transaction.to_write()) and (state := transaction.awaiting):
                self._say(trail, lines, state)
                while state is not None:
                    reply = self._arrived(trail, state) or await self._awaited(trail, state)
                    transaction.answer(reply)
                    state = transaction.awaiting
        except Failure as failure:
            if transaction.refusal is None:
                raise
            trail.said.append(failure.text)
        finally:
            trail.facts["command"] = transaction.command
        if transaction.refusal is None:
            return reply
        self._open = not transaction.ended
        if transaction.must_close or transaction.refusal.kind is Kind.INVALID or _is_closing(transaction.refusal):
            self.retire()
        trail.enter(transaction.refusal.state)
        raise transaction.refusal

    async def _send_ahead(self, trail: Trail, message: bytes) -> bytes:
        """Send a message but for its last block, no faster than the connection takes it; return that block."""
        last = (len(message) - 1) // BLOCK * BLOCK
        for start in range(0, last, BLOCK):
            if not self.wire.alive:
                break
            self.wire.write(message[start : start + BLOCK])
            await self.step(trail, _MESSAGE, self.wire.drain())
        return message[last:]

    def _hand_over(self, trail: Trail, octets: bytes, claim: Claim) -> None:
        """Send the last octets of a message; from then on its fate may be in doubt."""
        if self.wire.alive:
            claim.hand_over()
            trail.in_doubt = True
            self.wire.write(octets)

    def _judge(self, trail: Trail, reply: Reply) -> None:
        """Take the answer to the message: raise what it failed for."""
        self._open = False
        trouble = check(_MESSAGE, reply)
        if trouble is None and not trail.in_doubt:
            trouble = Failure(_MESSAGE, Kind.INVALID, "the server answered before the message was complete")
        if trouble is None:
            return
        if not trail.in_doubt or trouble.kind is Kind.INVALID or _is_closing(trouble):
            self.retire()
        raise trouble


def extensions(reply: Reply) -> dict[str, str]:
    """Return what an EHLO reply offers: keyword in lower case to its parameters (RFC 5321 section 4.1.1.1)."""
    offered: dict[str, str] = {}
    for line in reply.text.split("\n")[1:101]:
        keyword, _, parameters = line.strip().replace("=", " ", 1).partition(" ")
        offered.setdefault(keyword.lower(), parameters.strip())
    return offered


def _is_closing(failure: Failure) -> bool:
    return failure.reply is not None and failure.reply.closing
