"""The syntax of SMTP commands as the sink reads them (RFC 5321 section 4.1), strictly.

What a client may get wrong is refused with the reply that says so: octets that are no text, a path out of
form, a parameter whose extension was not offered or whose value its RFC does not allow.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping

_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"

MAIL_PARAMETERS: Mapping[str, tuple[str, str | None]] = {
    "SIZE": ("SIZE", r"\d{1,20}"),
    "BODY": ("8BITMIME", r"7BIT|8BITMIME"),
    "SMTPUTF8": ("SMTPUTF8", None),
    "RET": ("DSN", r"FULL|HDRS"),
    "ENVID": ("DSN", _XTEXT),
    "AUTH": ("AUTH", _XTEXT),
}
"""Parameters of MAIL: the extension that allows each, and its value's form (None: it has no value)."""

RCPT_PARAMETERS: Mapping[str, tuple[str, str | None]] = {
    "NOTIFY": ("DSN", r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*"),
    "ORCPT": ("DSN", r"[A-Za-z0-9-]+;" + _XTEXT),
}
"""The same for RCPT."""

_PATH = re.compile(r'<((?:"(?:[^"\\\r\n]|\\.)*"|[^<>\s"@]+)@[^<>\s@]+|)>((?: [^\s]+)*)')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RefusedError(Exception):
    """A command cannot be carried out; the reply that says so."""

    def __init__(self, code: int, status: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.status = status
        self.text = text


def command(line: bytes) -> tuple[str, str]:
    """Return the verb in capitals and the argument of a command line without its CRLF.

    Raises:
        RefusedError: it is not UTF-8 or has a control character.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise RefusedError(500, "5.5.2", "not UTF-8") from None
    if _CONTROL.search(text):
        raise RefusedError(500, "5.5.2", "control character in a command")
    verb, _, argument = text.partition(" ")
    return verb.upper(), argument


def path(
    argument: str, keyword: str, known: Mapping[str, tuple[str, str | None]], offers: Callable[[str], bool]
) -> tuple[str, dict[str, str | None]]:
    """Return the address and the parameters, names in capitals, of MAIL (`FROM:`) or RCPT (`TO:`).

    Raises:
        RefusedError: the syntax is wrong, or a parameter is not known or not offered.
    """
    match = _PATH.fullmatch(argument[len(keyword) :])
    if argument[: len(keyword)].upper() != keyword or match is None:
        raise RefusedError(501, "5.5.4", f"syntax is {keyword}<address> and parameters")
    parameters: dict[str, str | None] = {}
    for word in match[2].split():
        name, equals, value = word.partition("=")
        extension, form = known.get(name.upper(), ("", None))
        if not extension or not offers(extension) or name.upper() in parameters:
            raise RefusedError(555, "5.5.4", f"parameter {name[:40]} is not known here")
        right = not equals if form is None else re.fullmatch(form, value, re.IGNORECASE)
        if not right:
            raise RefusedError(501, "5.5.4", f"parameter {name} is malformed")
        parameters[name.upper()] = value if equals else None
    return match[1], parameters


def response(line: bytes) -> bytes:
    """Return the decoded response of a client in an AUTH exchange (RFC 4954 section 4); `=` is an empty one.

    Raises:
        RefusedError: the client cancels with `*`, or it is not base64.
    """
    if line == b"*":
        raise RefusedError(501, "5.7.0", "cancelled")
    if line == b"=":
        return b""
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        raise RefusedError(501, "5.5.2", "not base64") from None
