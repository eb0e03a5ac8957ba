"""The facts that mailq knows of a message beyond its document, and believes only where mailq wrote them. Pure.

A message that a producer publishes is known by its content: virtual host, outbox, message id, the whole body, the
producer's headers and properties for applications. A message that mailq sends back to the outbox, as a retry or a
delay, carries one header, `x-mailq-publication`: the mark of its publication, flags, and an authentication code over
these, message id and body. The journal knows such a message by mark and attempt. A header that does not verify counts
as absent. A header that somebody copies to another message does not verify there; on an exact copy of its own message,
it makes both one publication.
"""

from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import NamedTuple

from mailq.core.broker.application_headers import passed_on
from mailq.core.broker.messages import Consumed, Publication
from mailq.core.journal.records import JobKey

HEADER = "x-mailq-publication"
"""AMQP header of what mailq sends back to the outbox or to poison: mark, flags and authentication code."""

_FLAGS = ("returned", "requeued")
_CODE = 16


class Provenance(NamedTuple):
    """Where a message comes from, as far as mailq can tell.

    `mark` names the publication; a message without was not consumed before, or was not sent back. `returned` tells that
    traffic limits sent it away, `requeued` that an operator put it back from poison.
    """

    content: bytes = b""
    mark: str = ""
    returned: bool = False
    requeued: bool = False


UNKNOWN = Provenance()


class Outbox:
    """The outbox of a virtual host, and the secret by which mailq knows its own headers there."""

    def __init__(self, virtual_host: str, name: str, secret: str) -> None:
        self.name = name
        self._place = _sized(virtual_host) + _sized(name)
        self._key = blake2b(secret.encode("utf-8", "surrogatepass")).digest()

    def read(self, consumed: Consumed) -> Provenance:
        """Return where a message comes from."""
        content = self._content(consumed.message_id, consumed.body)
        headers = consumed.headers
        found = self._verified(content, headers[HEADER]) if HEADER in headers else Provenance(content)
        # Brokers add headers at each delivery, whose names begin with `x-`; the others are the producer's.
        own = sorted(passed_on(headers).items())
        if not own and consumed.application is None:
            return found
        told = repr((own, consumed.application))
        return found._replace(content=sha256(content + told.encode("utf-8", "surrogatepass")).digest())

    def key(self, provenance: Provenance, attempt: int) -> JobKey:
        """Return what the journal knows an attempt by."""
        if not provenance.mark:
            return JobKey(provenance.content[:16], marked=False)
        named = b"mark" + self._place + _sized(provenance.mark) + str(attempt).encode()
        return JobKey(sha256(named).digest()[:16], marked=True)

    def identity(self, name: str) -> bytes:
        """Return the digest of an id that a producer gave."""
        return sha256(b"id" + self._place + _sized(name)).digest()[:16]

    def signed(self, publication: Publication) -> Publication:
        """Return a publication whose provenance, if it has one, is written as a header that verifies."""
        headers = publication.headers
        if not headers or not isinstance(provenance := headers.get(HEADER), Provenance):
            return publication
        flags = ",".join(name for name in _FLAGS if getattr(provenance, name))
        if not (provenance.mark or flags):
            return publication._replace(headers={name: headers[name] for name in headers if name != HEADER})
        told = f"{provenance.mark};{flags}"
        code = self._code(told, self._content(publication.message_id, publication.body))
        return publication._replace(headers={**headers, HEADER: f"{told};{code}"})

    def _verified(self, content: bytes, header: object) -> Provenance:
        told, _, code = header.rpartition(";") if isinstance(header, str) else ("", "", "")
        mark, separator, flags = told.partition(";")
        if not separator or not code.isascii() or not compare_digest(code, self._code(told, content)):
            return Provenance(content)
        given = flags.split(",")
        return Provenance(content, mark, returned="returned" in given, requeued="requeued" in given)

    def _content(self, message_id: str | None, body: bytes) -> bytes:
        digest = sha256(self._place + _sized(message_id or ""))
        digest.update(body)  # not joined to the rest: that would copy it
        return digest.digest()

    def _code(self, told: str, content: bytes) -> str:
        return blake2b(told.encode("utf-8", "surrogatepass") + content, key=self._key, digest_size=_CODE).hexdigest()


def _sized(text: str) -> bytes:
    """Return a text that is told from any other, whatever follows."""
    octets = text.encode("utf-8", "surrogatepass")
    return b"%d:%b" % (len(octets), octets)
