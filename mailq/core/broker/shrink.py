"""What is published instead of a message that the broker takes not for its size. Pure.

A job on its way back is zipped, and nothing of it is lost. A result is told without what is largest in the
job, its message first. What cannot become lighter stays as it is.
"""

import gzip

import orjson

from mailq.core.broker.messages import Publication
from mailq.core.broker.publications import Names
from mailq.core.jobs.document import read_document

_KEPT = frozenset({"recipient", "results"})
"""Properties that are in every result."""


def shrink(publication: Publication, names: Names, most: int) -> Publication:
    """Return the publication with a body of at most so many octets, if that can be."""
    if len(publication.body) <= most or publication.content_type is None:  # the latter: poison, its bytes untouched
        return publication
    if not publication.exchange and publication.routing_key.startswith(f"{names.outbox}.delay."):
        zipped = publication.content_encoding == "gzip"
        body = gzip.decompress(publication.body) if zipped else publication.body
        return publication._replace(body=gzip.compress(body, 9), content_encoding="gzip")
    body = gzip.decompress(publication.body) if publication.content_encoding == "gzip" else publication.body
    return publication._replace(body=_shortened(body, most), content_encoding=None)


def _shortened(body: bytes, most: int) -> bytes:
    """Return a result without the largest properties of its job, and if need be without its earlier results."""
    document = read_document(body, None, len(body))
    sizes = {name: len(orjson.dumps({name: value})) for name, value in document.items() if name not in _KEPT}
    excess = len(body) - most
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if excess <= 0:
            break
        excess -= sizes[name] - 1  # a comma instead of two braces
        del document[name]
    if excess > 0:
        document["results"] = document["results"][-1:]
    return orjson.dumps(document)
