"""Login: one small dialogue per mechanism, as generators of (state, line).

The mechanisms are PLAIN (RFC 4616), LOGIN (obsolete but everywhere) and CRAM-MD5 (RFC 2195), within RFC 4954. The
session sends the lines, passes each 334 reply to the generator and judges the replies. A generator ends after its last
line. The lines hold credentials, so no code logs them.
"""

import base64
import binascii
import hmac
from collections.abc import Callable, Collection, Generator
from dataclasses import replace

from mailq.core.smtp.failure import Failure
from mailq.core.smtp.reply import Reply
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Login, Route

SHORTEST_SECRET = 3
"""Characters of the shortest password that is masked."""

Dialogue = Generator[tuple[State, str], Reply, None]
"""Generator that yields (state, line to send) and receives the reply."""


def plain(login: Login) -> Dialogue:
    """Send the credentials as an initial response, and again if the server asks for them in a line of their own."""
    response = _encode(f"\0{login.username}\0{login.password}")
    yield State.AUTHPLAIN, f"AUTH PLAIN {response}"
    yield State.AUTHPLAIN, response


def login(login: Login) -> Dialogue:
    """Send user name and password when the server asks for each."""
    yield State.AUTHLOGIN, "AUTH LOGIN"
    yield State.AUTHUSERNAME, _encode(login.username)
    yield State.AUTHPASSWORD, _encode(login.password)


def cram_md5(login: Login) -> Dialogue:
    """Answer a challenge with its keyed digest; the password is not sent."""
    challenge = yield State.AUTHCRAM, "AUTH CRAM-MD5"
    try:
        secret = base64.b64decode(challenge.text, validate=True)
    except (binascii.Error, ValueError):
        raise Failure(State.AUTHCRAM, Kind.INVALID, "the CRAM-MD5 challenge is not base64") from None
    digest = hmac.new(login.password.encode(), secret, "md5").hexdigest()
    yield State.AUTHRESPONSE, _encode(f"{login.username} {digest}")


MECHANISMS: dict[str, Callable[[Login], Dialogue]] = {"PLAIN": plain, "LOGIN": login, "CRAM-MD5": cram_md5}
"""Mechanisms by preference inside TLS; without TLS a mechanism that hides the password comes first."""


def secrets(login: Login) -> tuple[str, ...]:
    """Return the secrets of a login that must be masked, plain and as they are sent, the longest first.

    The digest of CRAM-MD5 is not among them: it depends on the challenge and is of no other use. A password of one or
    two characters occurs in too many words by chance: a mask would hide the transcript, and not the password.
    """
    if len(login.password) < SHORTEST_SECRET:
        return ()
    sent = (f"\0{login.username}\0{login.password}", login.password)
    words = {*sent, *map(_encode, sent)} - {""}
    return tuple(sorted(words, key=len, reverse=True))


def choose(offered: Collection[str], refused: Collection[str], *, encrypted: bool) -> list[str]:
    """Return the offered mechanisms in the order to try them, without those that the server has refused.

    Raises:
        Failure: the server offers no mechanism that mailq knows.
    """
    ours = list(MECHANISMS) if encrypted else list(reversed(MECHANISMS))
    common = [name for name in ours if name in offered]
    if not common:
        text = f"the server offers none of the mechanisms {', '.join(MECHANISMS)}"
        raise Failure(State.AUTHPLAIN, Kind.ERROR, text, code=454, status="4.7.0")
    return [name for name in common if name not in refused] or common


class Unfinished(Failure):
    """The server closed the connection before every mechanism was tried; `refused` are the refused ones."""

    def __init__(self, failure: Failure, refused: frozenset[str]) -> None:
        reply, code, status = failure.reply, failure.code, failure.status
        super().__init__(failure.state, failure.kind, failure.text, reply=reply, code=code, status=status)
        self.refused = refused

    def without_refused(self, route: Route) -> Route:
        """Return the same route without the mechanisms that the server refused."""
        assert route.login is not None
        return replace(route, login=replace(route.login, refused=self.refused))


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
