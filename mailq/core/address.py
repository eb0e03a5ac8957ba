"""An e-mail address as an SMTP path: parsed once, safe to put on the wire.

Source: RFC 5321 sections 4.1.2 (syntax) and 4.5.3.1 (limits), RFC 6531 (internationalised
addresses). Deliberately looser than the RFC where real mailboxes are: a local part may hold
consecutive dots. What could end a command or a path (controls, spaces, `<`, `>`) never passes.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

import idna

MAX_LOCAL = 64
MAX_DOMAIN = 255
MAX_PATH = 254

_ATOM = re.compile(r"[^\s\x00-\x20\x7f-\x9f\ud800-\udfff<>()\[\],;:\\\"@]+")
_QUOTED = re.compile(r'"(?:[^\x00-\x1f\x7f-\x9f\ud800-\udfff\\"]|\\[\x20-\x7e])*"')
_PLAIN = re.compile(rf"([\w.!#$%&'*+/=?^`{{|}}~-]{{1,{MAX_LOCAL}}})@([a-z0-9.-]+)", re.ASCII)
"""What most addresses look like: nothing but the domain is left to be judged."""
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")


class AddressError(ValueError):
    """The text is not an address that mail can be sent to."""


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: local part as given, domain in ASCII (A-labels, or a literal in brackets)."""

    local: str
    domain: str

    @property
    def international(self) -> bool:
        """Tell whether the local part needs SMTPUTF8 (RFC 6531); domains never do, they are A-labels."""
        return not self.local.isascii()

    @property
    def literal(self) -> str | None:
        """The IP address of an address literal such as `user@[192.0.2.1]`, else None."""
        if not self.domain.startswith("["):
            return None
        return self.domain[1:-1].removeprefix("IPv6:")

    def __str__(self) -> str:
        """Return the address as it stands between `<` and `>` on the wire."""
        return f"{self.local}@{self.domain}"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Return the address written in `text`.

    Raises:
        AddressError: what is wrong with it, in one clause.
    """
    if len(text) <= MAX_PATH and (plain := _PLAIN.fullmatch(text)):
        return Address(plain[1], ascii_domain(plain[2]))
    if len(text) > MAX_PATH + 1:  # a final dot does not count; nothing longer is worth a look
        raise AddressError(f"is longer than {MAX_PATH} octets")
    local, at, domain = text.rpartition("@")
    if _CONTROL.search(text):
        raise AddressError("has a control character")
    if not at or not local or not domain:
        raise AddressError("is not of the form local@domain")
    if not (_ATOM.fullmatch(local) or _QUOTED.fullmatch(local)):
        raise AddressError("has a local part that is neither plain nor a quoted string")
    if len(local.encode()) > MAX_LOCAL:
        raise AddressError(f"has a local part of more than {MAX_LOCAL} octets")
    address = Address(local, _literal(domain) if domain.startswith("[") else ascii_domain(domain))
    if len(str(address).encode()) > MAX_PATH:
        raise AddressError(f"is longer than {MAX_PATH} octets")
    return address


@lru_cache(maxsize=10_000)
def ascii_domain(domain: str) -> str:
    """Return the domain in lower-case A-labels (RFC 5890), without a final dot.

    Raises:
        AddressError: it is not a domain name.
    """
    name = domain.removesuffix(".").lower()
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as trouble:
            raise AddressError(f"has a domain that is not a valid IDN: {trouble}") from None
    if len(name) > MAX_DOMAIN or not _LABELS.fullmatch(name):
        raise AddressError("has a domain that is not a valid name")
    return name


def _literal(domain: str) -> str:
    text = domain[1:-1].strip() if domain.endswith("]") else ""
    if "%" in text:  # a scope (RFC 4007) means nothing to a peer, and may hold any character
        raise AddressError("has an address literal with a scope")
    tagged = text[:5].lower() == "ipv6:"
    try:
        ip = ipaddress.IPv6Address(text[5:]) if tagged else ipaddress.IPv4Address(text)
    except ValueError:
        raise AddressError("has an address literal that is not an IP address") from None
    return f"[IPv6:{ip}]" if tagged else f"[{ip}]"
