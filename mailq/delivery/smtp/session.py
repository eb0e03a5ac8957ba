"""One SMTP session with one mail server, once it is open. `deliver` is the state machine.

`_awaited` keeps the timeout of a state and turns an exception of the wire into a `Failure`, as `step` does during the
opening.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from time import monotonic

from mailq.core.content.conformance import MENDED, MessageRules, fitted
from mailq.core.content.mime import Content, payload
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Failure, Trouble
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Route
from mailq.delivery.offload import offloaded
from mailq.delivery.smtp.envelope import mail_from, rcpt_to
from mailq.delivery.smtp.opening import Opening
from mailq.delivery.smtp.transaction import Transaction, check
from mailq.ports.journal import HandoverGuard
from mailq.ports.wire import Wire

_MESSAGE = State.MESSAGE

BLOCK = 256 * 1024
"""Octets of a message that are written before the session waits until the connection can take more."""


class Session(Opening):
    """An SMTP session over one wire; opened once, then used for messages until it is retired."""

    __slots__ = ("_open", "messages", "quit_timeout", "spent")

    def __init__(self, wire: Wire, route: Route, timeouts: Mapping[State, float], quit_timeout: float) -> None:
        super().__init__(wire, route, timeouts)
        self.quit_timeout = quit_timeout
        self.messages = 0
        self.spent = False
        """True if no further message may be sent, though QUIT may."""
        self._open = False

    async def deliver(
        self, trail: Trail, job: Job, content: Content, claim: HandoverGuard, rules: MessageRules = MENDED
    ) -> Reply:
        """Walk mailfrom, rcptto, data and message; return the answer to the final dot.

        `rules` say how to change a message that this server does not accept unchanged.

        Raises:
            Failure: the server refused a command or the message, or the connection failed.
            Delayed, JournalError: the hand-over is not permitted; the receiver does not have the message.
        """
        try:
            self._begin(trail)
            if self._open:
                await self._reset(trail)
            if content.eightbit or content.eightbit_header:
                content = await self._fitted(trail, content, rules)
            await self._transact(trail, self._envelope(job, content))
            trail.said.append(content.size)
            message = payload(content.content)
            if len(message) > BLOCK:
                message = await self._send_ahead(trail, message)
            self._hand_over(trail, message, claim)
            reply = self._arrived(trail, _MESSAGE) or await self._awaited(trail, _MESSAGE)
            self._judge(trail, reply)
        except Failure:
            raise
        except BaseException:  # the state of the session is unknown: no permission, cancelled, or a bug
            self.retire()
            raise
        finally:
            self._note_sent(trail, content.size if trail.in_doubt else 0)
        trail.facts["dsn"] = "dsn" in self.offered
        return reply

    async def probe(self, trail: Trail, job: Job, content: Content, rules: MessageRules = MENDED) -> Reply:
        """Walk mailfrom and rcptto and send RSET: a dry run; return the reply to RCPT.

        Raises:
            Failure: the server refused a command, or the connection failed.
        """
        try:
            self._begin(trail)
            if self._open:
                await self._reset(trail)
            if content.eightbit or content.eightbit_header:
                content = await self._fitted(trail, content, rules)
            reply = await self._transact(trail, self._envelope(job, content), data=False)
            with contextlib.suppress(Failure):  # the server has replied; a failed RSET only retires the session
                await self._reset(Trail())
        except Failure:
            raise
        except BaseException:
            self.retire()
            raise
        finally:
            self._note_sent(trail, 0)
        trail.facts["dsn"] = "dsn" in self.offered
        return reply

    def _begin(self, trail: Trail) -> None:
        """Begin the next message."""
        self.messages += 1
        if self._secrets:
            trail.conceal(self._secrets)
        trail.facts.update(self._facts, messages=self.messages)
        if not trail.said:
            trail.said.append(f"session {self._facts['session']}, message {self.messages}")

    async def quit(self) -> None:
        """Send QUIT if commands may still be sent, and close the connection; never raises."""
        try:
            if self.reusable:
                self.wire.write(b"QUIT\r\n")
                await self.wire.reply(self.quit_timeout)
                await self.wire.reply(self.quit_timeout)  # until the peer closes, it counts this connection
        except (Trouble, TimeoutError):
            pass
        finally:
            self.retire()

    def _arrived(self, trail: Trail, state: State) -> Reply | None:
        """Return the reply in `state` if it has arrived already: replies to pipelined commands arrive together."""
        reply = self.wire.ready()
        if reply is None:
            return None
        trail.state = state
        trail.spent(state, 0.0)
        return self._heard(trail, reply)

    async def _awaited(self, trail: Trail, state: State) -> Reply:
        """Enter `state` and wait for the next reply, or raise the failure in it; the wire keeps the timeout."""
        trail.state = state
        started = monotonic()
        try:
            reply = await self.wire.reply(self.timeouts[state])
        except (Trouble, TimeoutError) as trouble:
            raise self._ended(state, trouble) from trouble
        finally:
            trail.spent(state, monotonic() - started)
        return self._heard(trail, reply)

    def _say(self, trail: Trail, lines: tuple[str, ...]) -> None:
        """Send commands."""
        trail.said.append(lines)
        self.wire.write("\r\n".join((*lines, "")).encode())

    async def _listen(self, trail: Trail, state: State) -> None:
        """Read a reply that no command asked for, and fail: 421, or a line that would shift all later replies.

        Raises:
            Failure: always.
        """
        reply = self._arrived(trail, state) or await self._awaited(trail, state)
        self.retire()
        if reply.closing:
            raise Failure(state, Kind.ERROR, reply=reply)
        raise Failure(state, Kind.INVALID, f"the server spoke out of turn: {reply.code} {reply.text}"[:500])

    async def _reset(self, trail: Trail) -> None:
        """End a transaction that was left open before the next one begins (RFC 5321 section 4.1.1.5)."""
        try:
            if not self.wire.alive:
                await self._listen(trail, State.MAILFROM)
            self._say(trail, ("RSET",))
            reply = self._arrived(trail, State.MAILFROM) or await self._awaited(trail, State.MAILFROM)
            trouble = check(State.MAILFROM, reply)
        except Failure as failure:
            trouble = failure
        if trouble:
            self.retire()
            raise Failure(State.MAILFROM, Kind.LOST, f"the session cannot be used again: {trouble.text}") from trouble
        self._open = False

    async def _fitted(self, trail: Trail, content: Content, rules: MessageRules) -> Content:
        """Return the message in a form that this server accepts, or raise a failure; a thread converts a large one."""
        eight_bit, utf8 = "8bitmime" in self.offered, "smtputf8" in self.offered
        work = partial(fitted, content, rules, eight_bit=eight_bit, utf8=utf8)
        message, warnings = work() if eight_bit and utf8 else await offloaded(content.size, work)
        for each in warnings:
            trail.warn(each, here=True)
        return message

    def _envelope(self, job: Job, content: Content) -> tuple[str, str]:
        """Return MAIL and RCPT for this server, or raise a failure if it cannot accept the message."""
        mail = mail_from(job.envelope, job.recipient, content, job.dsn, self.offered)
        return mail, rcpt_to(job.recipient, job.dsn, self.offered)

    async def _transact(self, trail: Trail, envelope: tuple[str, str], *, data: bool = True) -> Reply:
        """Send the commands and return the last reply, or raise the first refusal."""
        transaction = Transaction(*envelope, pipelining="pipelining" in self.offered, data=data)
        self._open = True
        try:
            while (state := transaction.due) is not None:
                if not self.wire.alive:
                    await self._listen(trail, state)
                self._say(trail, transaction.to_write())
                while state is not None:
                    reply = self._arrived(trail, state) or await self._awaited(trail, state)
                    transaction.answer(reply)
                    state = transaction.awaiting
        except Failure as failure:
            if transaction.refusal is None:
                raise
            trail.said.append(failure.text)
        finally:
            if command := transaction.command:
                trail.facts["command"] = command
        if transaction.refusal is None:
            return reply
        self._open = transaction.left_open
        if transaction.must_close:
            self.retire()
        trail.state = transaction.refusal.state
        raise transaction.refusal

    async def _send_ahead(self, trail: Trail, message: bytes) -> bytes:
        """Send a message except for its last block, no faster than the connection takes it; return that block."""
        last = (len(message) - 1) // BLOCK * BLOCK
        for start in range(0, last, BLOCK):
            if not self.wire.alive:
                break
            self.wire.write(message[start : start + BLOCK])
            await self.step(trail, _MESSAGE, self.wire.drain())
        return message[last:]

    def _hand_over(self, trail: Trail, octets: bytes, claim: HandoverGuard) -> None:
        """Record the hand-over and send the last octets of a message; from then on the attempt may be in doubt."""
        if self.wire.alive:
            claim.hand_over()
            trail.in_doubt = True
            self.wire.write(octets)

    def _judge(self, trail: Trail, reply: Reply) -> None:
        """Judge the reply to the message, and raise its failure."""
        self._open = False
        trouble = check(_MESSAGE, reply)
        if trouble is None and not trail.in_doubt:
            trouble = Failure(_MESSAGE, Kind.INVALID, "the server answered before the message was complete")
        if trouble is None:
            return
        if not trail.in_doubt or trouble.kind is Kind.INVALID or _is_closing(trouble):
            self.retire()
        raise trouble


def _is_closing(failure: Failure) -> bool:
    return failure.reply is not None and failure.reply.closing
