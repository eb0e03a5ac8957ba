"""An e-mail address as an SMTP path: parsed once, safe to put on the wire.

Source: RFC 5321 sections 4.1.2 (syntax) and 4.5.3.1 (limits), RFC 6531 (internationalised
addresses). Deliberately looser than the RFC where real mailboxes are: a local part may hold
consecutive dots, and may be longer than 64 octets, since the receiver decides on that.
Controls, `<` and `>`, which could end a command or a path, never pass. A space passes only between the quotes
of a local part. `read_address` takes off what people and files leave around an address; see
docs/decisions/messages-and-addresses.md.
"""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import lru_cache

import idna

from mailq.core.networks import numeric

MAX_DOMAIN = 255
MAX_ADDRESS = 900
"""Octets of an address: a bound of our own on commands and memory, far above what receivers must take."""

MAX_TEXT = 2 * MAX_ADDRESS
"""Characters that are looked at for an address with a display name and blanks."""

_ATOM = re.compile(r"[^\s\x00-\x20\x7f-\x9f\ud800-\udfff<>()\[\],;:\\\"@]+")
_QUOTED = re.compile(r'"((?:[^\x00-\x1f\x7f-\x9f\ud800-\udfff\\"<>]|\\[\x20-;=?-\x7e])*+)"')
_PLAIN = re.compile(rf"([\w.!#$%&'*+/=?^`{{|}}~-]{{1,{MAX_ADDRESS - MAX_DOMAIN - 1}}})@([a-z0-9.-]+)", re.ASCII)
"""What most addresses look like: nothing but the domain is left to be judged."""
_LABELS = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_AROUND = " \t\r\n\xa0\ufeff\u200b\u2060"
"""Blanks and line ends around an address, those that nobody sees too."""
_NAMED = re.compile(r'((?:"(?:[^\x00-\x1f\x7f"\\]|\\[\x20-\x7e])*+"|[^\x00-\x1f\x7f"<>@,;:()\\])*+)<([^<>]*)>')
"""A display name, which holds no second address, and an address in angle brackets."""
_JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts need to spell a word (RFC 5892 appendix A)."""


class AddressError(ValueError):
    """The text is not an address that mail can be sent to."""


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: local part as short as it can be quoted, domain in ASCII (A-labels, or a literal in brackets).

    `mended` tells what `read_address` took off, each as the end of a sentence that begins with the property's name.
    """

    local: str
    domain: str
    mended: tuple[str, ...] = field(default=(), compare=False)

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
def read_address(text: str) -> Address:
    """Return the address written in `text`, without blanks around it, display name and angle brackets.

    Raises:
        AddressError: what is wrong with it, in one clause.
    """
    if not text.endswith((">", *_AROUND)) and not text.startswith(tuple(_AROUND)):
        return parse_address(text)
    mended = []
    bare = text.strip(_AROUND)
    if bare != text:
        mended.append("had blanks or line ends around it, which were removed")
    if len(bare) <= MAX_TEXT and (named := _NAMED.fullmatch(bare)):
        bare = named[2].strip(_AROUND)
        mended.append("had a display name, which was removed" if named[1] else "had angle brackets, which were removed")
    return replace(parse_address(bare), mended=tuple(mended))


def parse_address(text: str) -> Address:
    """Return the address that is `text`, nothing around it.

    Raises:
        AddressError: what is wrong with it, in one clause.
    """
    if len(text) <= MAX_ADDRESS and (plain := _PLAIN.fullmatch(text)):
        return Address(plain[1], ascii_domain(plain[2]))
    if len(text) > MAX_ADDRESS + 1:  # a final dot does not count; nothing longer is worth a look
        raise AddressError(f"is longer than {MAX_ADDRESS} octets")
    local, at, domain = text.rpartition("@")
    if _CONTROL.search(text):
        raise AddressError("has a control character")
    if not at or not local or not domain:
        raise AddressError("is not of the form local@domain")
    address = Address(_local(local), _literal(domain) if domain.startswith("[") else ascii_domain(domain))
    if len(str(address).encode()) > MAX_ADDRESS:
        raise AddressError(f"is longer than {MAX_ADDRESS} octets")
    return address


def _local(local: str) -> str:
    """Return a local part without needless quotes and backslashes: both spellings are one mailbox (RFC 5321 4.1.2)."""
    if quoted := _QUOTED.fullmatch(local):
        inner = re.sub(r"\\(.)", r"\1", quoted[1])
        dotted = inner.startswith(".") or inner.endswith(".") or ".." in inner
        local = inner if _ATOM.fullmatch(inner) and not dotted else '"' + re.sub(r'(["\\])', r"\\\1", inner) + '"'
    elif not _ATOM.fullmatch(local):
        raise AddressError("has a local part that is neither plain nor a quoted string without angle brackets")
    if not local.isascii() and (hidden := [each for each in local if _invisible(each)]):
        raise AddressError(f"has an invisible character, U+{ord(hidden[0]):04X}, in its local part")
    return local


def _invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" and character not in _JOINERS


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
            symbols = _symbols(name)
            if symbols is None:
                raise AddressError(f"has a domain that is not a valid IDN: {trouble}") from None
            name = symbols
    if len(name) > MAX_DOMAIN or not _LABELS.fullmatch(name):
        raise AddressError("has a domain that is not a valid name")
    return name


def _symbols(domain: str) -> str | None:
    """Return a domain with emoji in A-labels as browsers make them (UTS #46); None if something else is wrong.

    IDNA 2008 (RFC 5892) has no symbols, but registries sell such names, and their A-labels get mail.
    """
    try:
        labels = idna.uts46_remap(domain).split(".")
        return ".".join(_symbol_label(label) for label in labels)
    except UnicodeError:  # IDNAError is one
        return None


def _symbol_label(label: str) -> str:
    if not label.isascii() and all(each.isascii() or unicodedata.category(each) == "So" for each in label):
        return "xn--" + label.encode("punycode").decode("ascii")
    return idna.encode(label).decode("ascii")


@lru_cache(maxsize=1000)
def host_name(text: str) -> str:
    """Return a host's name as `ascii_domain` does, or its IP address in its usual form, without brackets.

    All spellings of a host are one then: limits and sessions are counted by name.

    Raises:
        AddressError: it is neither.
    """
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else ""
    name = inside.removeprefix("IPv6:").removeprefix("ipv6:") or text
    ip = numeric(name)
    if ip is not None:
        return ip
    if inside:
        raise AddressError("has an address literal that is not an IP address")
    name = ascii_domain(name)
    return numeric(name) or name


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
