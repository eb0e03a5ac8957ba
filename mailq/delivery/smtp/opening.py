"""The opening of a session: bind, connect, intro, ehlo, starttls and login, in the order of `_walk`.

`step` keeps the timeout of a state, and `_ended` turns an exception of the wire into a `Failure`. Timeouts follow RFC
5321 section 4.5.3.2 unless the operator configures others.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping
from secrets import token_hex
from time import monotonic
from typing import Any, TypeVar

from mailq.core.networks import same_address
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Failure, Trouble
from mailq.core.smtp.reply import Reply
from mailq.core.smtp.transcript import masked
from mailq.core.smtp.trust import STATUS as TRUST_STATUS
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Login, Route, Tls
from mailq.delivery.smtp import auth
from mailq.delivery.smtp.envelope import Extensions
from mailq.delivery.smtp.transaction import check
from mailq.ports.wire import Wire

T = TypeVar("T")

_WRONG = 535
"""Reply code for a wrong password, with a mechanism that the server knows (RFC 4954 section 6)."""


_HOST_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)+[A-Za-z][A-Za-z0-9-]{1,62}\.?")
"""Form of a server's name at the start of a greeting that refuses; any other first word belongs to the reason."""


class Opening:
    """The opening of a session over one wire, and the facts learnt during it."""

    __slots__ = ("_facts", "_retired", "_secrets", "offered", "route", "timeouts", "wire")

    def __init__(self, wire: Wire, route: Route, timeouts: Mapping[State, float]) -> None:
        self.wire = wire
        self.route = route
        self.timeouts = timeouts
        self.offered: Extensions = {}
        """Extensions in the last EHLO reply of the server."""
        self._facts: dict[str, Any] = {}
        self._secrets: tuple[str, ...] = ()
        self._retired = False

    async def open(self, trail: Trail) -> None:
        """Walk bind, connect, intro, ehlo, starttls and login.

        Raises:
            Failure: the first state that failed; the wire stays open for QUIT if commands may still be sent (RFC 5321
                sections 3.1, 4.1.1.10), else it is closed.
        """
        try:
            await self._walk(trail)
        except Failure as failure:
            if failure.kind is Kind.INVALID or (failure.reply is not None and failure.reply.closing):
                self.retire()
            raise
        except BaseException:
            self.retire()
            raise
        finally:
            self._note_sent(trail, 0)

    @property
    def reusable(self) -> bool:
        """True while commands may be sent: the connection is in step, and nothing is unread."""
        return not self._retired and self.wire.alive

    def retire(self) -> None:
        """Close the connection; no command may follow."""
        self._retired = True
        self.wire.close()

    async def ask(self, trail: Trail, state: State, exchange: Awaitable[Reply]) -> Reply:
        """Do a step and return its reply, which must be the one expected in this state."""
        reply = self._heard(trail, await self.step(trail, state, exchange))
        trouble = check(state, reply)
        if trouble:
            raise trouble
        return reply

    async def step(self, trail: Trail, state: State, exchange: Awaitable[T]) -> T:
        """Enter `state` and await its one exchange, or raise the failure in it."""
        trail.state = state
        started = monotonic()
        try:
            async with asyncio.timeout(self.timeouts[state]):
                return await exchange
        except (Trouble, TimeoutError) as trouble:
            raise self._ended(state, trouble) from trouble
        finally:
            trail.spent(state, monotonic() - started)

    def _ended(self, state: State, trouble: Trouble | TimeoutError) -> Failure:
        """Return the failure of an exchange without a reply, and close the connection."""
        self.retire()
        if isinstance(trouble, Trouble):
            return Failure(state, trouble.kind, trouble.text)
        return Failure(state, Kind.TIMEOUT)

    def _heard(self, trail: Trail, reply: Reply) -> Reply:
        """Record a reply in the trail."""
        trail.heard(reply)
        return reply

    async def _walk(self, trail: Trail) -> None:
        wire, route = self.wire, self.route
        trail.said.append(f"connecting to {route.target.ip} port {route.target.port}")
        await self.step(trail, State.BIND, wire.bind(route.source))
        try:
            await self.step(trail, State.CONNECT, wire.connect())
        except Failure:
            if wire.local and wire.local_port:
                trail.facts["tried"] = {"from": wire.local, "from_port": wire.local_port, "to": route.target.ip}
            raise
        trail.said.append(f"connected from {wire.local}")
        if route.source.ip is not None and not same_address(route.source.ip, wire.local):
            trail.state = State.BIND
            self.retire()  # not even QUIT may be sent from that address
            text = f"the connection would leave from {wire.local} instead of {route.source.ip}; nothing was sent"
            raise Failure(State.BIND, Kind.ERROR, text)
        self._learn(trail, {"from": wire.local, "from_port": wire.local_port, "to": route.target.ip})
        self._learn(trail, {"messages": 1, "session": token_hex(8)})
        if route.tls is Tls.IMPLICIT:
            await self.step(trail, State.STARTTLS, wire.handshake())
            self._learn_security(trail)
        await self._greeting(trail)
        await self._hello(trail)
        if route.tls in (Tls.OPPORTUNISTIC, Tls.REQUIRED):
            await self._starttls(trail)
        if route.login:
            await self._login(trail, route.login)
        wire.take_over()

    async def _greeting(self, trail: Trail) -> None:
        """Read the greeting; its first word is the server's name, in a refusal only if it has the form of a name."""
        intro = self._heard(trail, await self.step(trail, State.INTRO, self.wire.greeting()))
        trouble = check(State.INTRO, intro)
        name, *rest = intro.text.split(maxsplit=1) or [""]
        if name and (trouble is None or _HOST_NAME.fullmatch(name)):
            self._learn(trail, {"mta": name[:255]})
            intro = intro._replace(text=rest[0] if rest else intro.text)
        if trouble is not None:
            raise trouble if trouble.reply is None else Failure(trouble.state, trouble.kind, reply=intro)

    def _learn(self, trail: Trail, facts: Mapping[str, Any]) -> None:
        """Record facts of the connection for this result and for those of later messages."""
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
        """Send a line and return its reply; with a `command`, the line has secrets and only `command` is recorded."""
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
            reply = self._heard(trail, await self.step(trail, State.STARTTLS, self.wire.starttls()))
            trouble = check(State.STARTTLS, reply)
            if trouble and self.route.falls_back and trouble.kind is Kind.ERROR and not reply.closing:
                return  # RFC 3207 section 4: the client may go on without
            if trouble:
                raise trouble
            if reply.code != 220:  # neither a refusal nor 220: the connection stays as it was
                raise Failure(State.STARTTLS, Kind.INVALID, f"unexpected answer: {reply.code} {reply.text}"[:500])
            self._learn_security(trail)
            try:
                await self._hello(trail)
            except Failure as failure:  # with TLS 1.3 the server may refuse a handshake only here
                failure.tls_unusable = failure.reply is None or not failure.reply.closing
                raise
        elif self.route.tls is Tls.REQUIRED:
            trail.state = State.STARTTLS
            raise Failure(State.STARTTLS, Kind.ERROR, "TLS is required and the server does not offer STARTTLS")

    async def _login(self, trail: Trail, login: Login) -> None:
        encrypted = "cipher" in self._facts
        self._check_trust(trail, login, encrypted=encrypted)
        offered = self.offered.get("auth", "").upper().split()
        self._secrets = auth.secrets(login)
        trail.conceal(self._secrets)
        refusals: dict[str, Failure] = {}
        for mechanism in auth.choose(offered, login.refused, encrypted=encrypted):
            try:
                await self._authenticate(trail, login, mechanism)
            except Failure as failure:
                if _refused(failure):
                    refusals[mechanism] = failure
                elif refusals and _hung_up(failure):  # because of the mechanisms before this one
                    raise auth.Unfinished(failure, login.refused | refusals.keys()) from failure
                else:
                    raise
            else:
                return
        raise self._reported(trail, refusals)

    def _check_trust(self, trail: Trail, login: Login, *, encrypted: bool) -> None:
        """Raise a failure unless the password may be sent: TLS and the server's identity are checked as configured."""
        trail_state, trail.state = trail.state, State.STARTTLS
        if not (encrypted or login.plaintext):
            raise Failure(State.STARTTLS, Kind.ERROR, "TLS is required before credentials and is not to be had")
        if (trust := self.route.trust) is not None:
            trouble = trust.problem(self._facts.get("certificate"), self.route.target.host)
            if trouble is not None:
                raise Failure(State.STARTTLS, Kind.ERROR, trouble, code=454, status=TRUST_STATUS)
        trail.state = trail_state

    def _reported(self, trail: Trail, refusals: Mapping[str, Failure]) -> Failure:
        """Return the refusal to report when all mechanisms are refused: one about the password, else the last."""
        mechanism = next((name for name, each in refusals.items() if each.code == _WRONG), [*refusals][-1])
        failure = refusals[mechanism]
        trail.state = failure.state
        trail.facts["command"] = f"AUTH {mechanism}"
        self._learn(trail, {"authentication": mechanism})
        return failure

    async def _authenticate(self, trail: Trail, login: Login, mechanism: str) -> None:
        """Send the lines of one mechanism's dialogue."""
        self._learn(trail, {"authentication": mechanism})
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


def _refused(failure: Failure) -> bool:
    """Return whether the server refused a mechanism for good, so that another one may be tried (RFC 4954 section 4)."""
    return failure.kind is Kind.ERROR and failure.reply is not None and failure.reply.permanent


def _hung_up(failure: Failure) -> bool:
    return failure.kind is Kind.LOST or (failure.reply is not None and failure.reply.closing)


def extensions(reply: Reply) -> dict[str, str]:
    """Return the extensions in an EHLO reply: keyword in lower case to its parameters (RFC 5321 section 4.1.1.1).

    The first line of a keyword counts. AUTH lines are joined: servers send the old form `AUTH=` too, with other
    parameters at times.
    """
    offered: dict[str, str] = {}
    for line in reply.text.split("\n")[1:101]:
        keyword, _, parameters = line.strip().replace("=", " ", 1).partition(" ")
        name = keyword.lower()
        if name == "auth" and name in offered:
            offered[name] = f"{offered[name]} {parameters.strip()}"
        else:
            offered.setdefault(name, parameters.strip())
    return offered
