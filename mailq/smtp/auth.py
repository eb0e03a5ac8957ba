"""Logging in: one small dialogue per mechanism, as generators of (state, line).

PLAIN (RFC 4616), LOGIN (obsolete but everywhere), CRAM-MD5 (RFC 2195), within RFC 4954. A
generator is sent each 334 reply and ends after its last line; the session does the talking and
judges the answers. Nothing here is ever logged: the lines hold credentials.
"""

import base64
import binascii
import hmac
from collections.abc import Callable, Collection, Generator

from mailq.core.failure import Failure
from mailq.core.reply import Reply
from mailq.core.routing import Login
from mailq.core.states import Kind, State

Dialogue = Generator[tuple[State, str], Reply, None]
"""Yields (state, line to send) and is sent the reply."""


def plain(login: Login) -> Dialogue:
    """Send everything at once, as an initial response."""
    yield State.AUTHPLAIN, "AUTH PLAIN " + _encode(f"\0{login.username}\0{login.password}")


def login(login: Login) -> Dialogue:
    """Send user name and password when asked."""
    yield State.AUTHLOGIN, "AUTH LOGIN"
    yield State.AUTHUSERNAME, _encode(login.username)
    yield State.AUTHPASSWORD, _encode(login.password)


def cram_md5(login: Login) -> Dialogue:
    """Answer a challenge with its keyed digest; the password itself stays here."""
    challenge = yield State.AUTHCRAM, "AUTH CRAM-MD5"
    try:
        secret = base64.b64decode(challenge.text, validate=True)
    except (binascii.Error, ValueError):
        raise Failure(State.AUTHCRAM, Kind.INVALID, "the CRAM-MD5 challenge is not base64") from None
    digest = hmac.new(login.password.encode(), secret, "md5").hexdigest()
    yield State.AUTHRESPONSE, _encode(f"{login.username} {digest}")


MECHANISMS: dict[str, Callable[[Login], Dialogue]] = {"PLAIN": plain, "LOGIN": login, "CRAM-MD5": cram_md5}
"""By preference inside TLS; without TLS a mechanism that hides the password comes first."""


def secrets(login: Login) -> tuple[str, ...]:
    """Return what of a login must not be told, plain and as it is sent, the longest first.

    CRAM-MD5's digest is not among them: it depends on the challenge and is good for nothing else.
    """
    sent = (f"\0{login.username}\0{login.password}", login.password)
    words = {*sent, *map(_encode, sent)} - {""}
    return tuple(sorted(words, key=len, reverse=True))


def choose(offered: Collection[str], *, encrypted: bool) -> str:
    """Return the mechanism to use of those that the server offers.

    Raises:
        Failure: it offers none that mailq knows.
    """
    ours = list(MECHANISMS) if encrypted else list(reversed(MECHANISMS))
    for name in ours:
        if name in offered:
            return name
    text = f"the server offers none of the mechanisms {', '.join(MECHANISMS)}"
    raise Failure(State.AUTHPLAIN, Kind.ERROR, text, code=454, status="4.7.0")


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
