"""SMTP AUTH as the sink does it (RFC 4954): one generator for each mechanism.

A generator yields the state and the challenge of each 334, is sent the client's decoded response,
and returns the state of the final answer with the user, or None if the password is wrong. PLAIN is
RFC 4616, CRAM-MD5 is RFC 2195, LOGIN was never published as an RFC.
"""

import hmac
from collections.abc import Callable, Generator, Mapping

from mailq.core.states import State

Login = Generator[tuple[State, bytes], bytes, tuple[State, str | None]]
Users = Mapping[str, str]


def plain(users: Users, _challenge: bytes) -> Login:
    """Take authorisation identity, user and password in one response."""
    words = (yield State.AUTHPLAIN, b"").split(b"\0")
    if len(words) != 3:
        return State.AUTHPLAIN, None
    return State.AUTHPLAIN, _check(users, words[1], words[2])


def login(users: Users, _challenge: bytes) -> Login:
    """Ask for the user, then for the password."""
    user = yield State.AUTHLOGIN, b"Username:"
    password = yield State.AUTHUSERNAME, b"Password:"
    return State.AUTHPASSWORD, _check(users, user, password)


def cram_md5(users: Users, challenge: bytes) -> Login:
    """Let the client prove that it knows the password without sending it."""
    response = yield State.AUTHCRAM, challenge
    user, _, digest = response.rpartition(b" ")
    name = user.decode("utf-8", "replace")
    right = hmac.new(users.get(name, "").encode(), challenge, "md5").hexdigest().encode()
    known = hmac.compare_digest(right, digest) and name in users
    return State.AUTHRESPONSE, name if known else None


def _check(users: Users, user: bytes, password: bytes) -> str | None:
    name = user.decode("utf-8", "replace")
    right = hmac.compare_digest(users.get(name, "").encode(), password)
    return name if right and name in users else None


MECHANISMS: dict[str, Callable[[Users, bytes], Login]] = {"PLAIN": plain, "LOGIN": login, "CRAM-MD5": cram_md5}
STARTS_WITH_CLIENT = frozenset({"PLAIN", "LOGIN"})
"""Mechanisms whose first response may stand in the AUTH command itself (RFC 4954 section 4)."""
