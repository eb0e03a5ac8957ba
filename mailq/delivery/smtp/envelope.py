"""MAIL FROM and RCPT TO with the parameters that the server offers. Pure.

The extensions are SIZE (RFC 1870), 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531) and DSN (RFC 3461). If the message needs an
extension that the server does not offer, the attempt ends here, before any command.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from mailq.core.content.mime import Content
from mailq.core.jobs.address import Address
from mailq.core.jobs.job import Dsn
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State

Extensions = Mapping[str, str]
"""Extensions that the server offers: keyword in lower case to parameters, unchanged."""

_TYPED = re.compile(r"([A-Za-z0-9-]+);(.+)")
"""Form of an original recipient with its address type (RFC 3461 section 4.2), a registered word (RFC 3464)."""


def mail_from(
    sender: Address | None, recipient: Address, content: Content, dsn: Dsn | None, offered: Extensions
) -> str:
    """Return the MAIL command for a message.

    Raises:
        Failure: the message is larger than the server accepts, or needs SMTPUTF8 and the server does not offer it.
    """
    path = str(sender) if sender else ""
    parameters = [f"MAIL FROM:<{path}>"]
    if "size" in offered:
        limit = _limit(offered["size"])
        if limit and content.size > limit:
            text = f"message of {content.size} octets is larger than the server's limit of {limit}"
            raise Failure(State.MAILFROM, Kind.ERROR, text, code=552, status="5.3.4", unable=True)
        parameters.append(f"SIZE={content.size}")
    if content.eightbit and "8bitmime" in offered:
        parameters.append("BODY=8BITMIME")
    international = not (path.isascii() and recipient.local.isascii())
    if international and "smtputf8" not in offered:
        text = "the address needs SMTPUTF8 and the server does not offer it"
        raise Failure(State.MAILFROM, Kind.ERROR, text, code=550, status="5.6.7", unable=True)
    if international or (content.eightbit_header and "smtputf8" in offered):
        parameters.append("SMTPUTF8")
    if dsn and "dsn" in offered:
        if dsn.ret:
            parameters.append(f"RET={dsn.ret.upper()}")
        if dsn.envid:
            parameters.append(f"ENVID={xtext(dsn.envid)}")
    return " ".join(parameters)


def rcpt_to(recipient: Address, dsn: Dsn | None, offered: Extensions) -> str:
    """Return the RCPT command for a recipient."""
    parameters = [f"RCPT TO:<{recipient}>"]
    if dsn and "dsn" in offered:
        if dsn.notify:
            parameters.append("NOTIFY=" + "".join(dsn.notify.split()).upper())
        if dsn.orcpt:
            typed = _TYPED.fullmatch(dsn.orcpt)
            kind, address = typed.groups() if typed else ("rfc822", dsn.orcpt)
            typed_address = f"{kind};{xtext(address)}" if address.isascii() else f"utf-8;{_unitext(address)}"
            parameters.append(f"ORCPT={typed_address}")
    return " ".join(parameters)


def xtext(text: str) -> str:
    """Return `text` encoded as xtext (RFC 3461 section 4): safe inside an ESMTP parameter."""
    return re.sub(r"[^!-*,-<>-~]", lambda match: f"+{ord(match[0]):02X}", text)


def _unitext(text: str) -> str:
    """Return an address in ASCII as in RFC 6533 section 3; every server that offers DSN can read that form."""
    return re.sub(r"[^!-*,-<>-\[\]-~]", lambda match: f"\\x{{{ord(match[0]):X}}}", text)


@lru_cache(maxsize=1024)
def _limit(offered: str) -> int:
    """Return the octets of the largest message that the server accepts; 0 without a limit."""
    return int(offered) if offered.isascii() and offered.isdigit() and len(offered) < 20 else 0
