"""What is published instead of a message that is too large for the broker."""

import gzip
from random import Random

import orjson
import pytest

from mailq.core.broker.messages import Publication
from mailq.core.broker.publications import Names
from mailq.core.broker.shrink import shrink

NAMES = Names()
RESULT = {"state": "message", "result": "accepted"}


def told(most, **document):
    body = orjson.dumps({"recipient": "a@a.test", **document})
    return orjson.loads(shrink(Publication("mailq", "success", body), NAMES, most).body)


def test_what_is_not_too_large_stays_as_it_is():
    publication = Publication("mailq", "success", b"{}", content_encoding="gzip")
    assert shrink(publication, NAMES, 2) is publication


def test_poison_is_not_touched():
    publication = Publication("", "outbox.poison", b"no job", content_type=None)
    assert shrink(publication, NAMES, 1) is publication


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_job_on_its_way_back_is_zipped_as_well_as_can_be(encoding):
    body = orjson.dumps({"mime": Random(1).randbytes(5000).hex()})
    publication = Publication(
        "", "outbox.delay.1s", gzip.compress(body, 0) if encoding else body, content_encoding=encoding
    )
    shrunk = shrink(publication, NAMES, 5000)
    assert shrunk.content_encoding == "gzip"
    assert gzip.decompress(shrunk.body) == body
    assert len(shrunk.body) < 0.7 * len(body)


def test_a_result_loses_what_is_largest_in_its_job_and_no_more():
    document = {"id": "1", "mime": "x" * 500, "own": "y" * 200, "tags": ["t"], "results": [RESULT]}
    whole = len(orjson.dumps({"recipient": "a@a.test", **document}))
    assert set(told(whole - 1, **document)) == {"recipient", "id", "own", "tags", "results"}
    assert set(told(whole - 510, **document)) == {"recipient", "id", "own", "tags", "results"}
    assert set(told(whole - 511, **document)) == {"recipient", "id", "tags", "results"}


def test_a_result_keeps_its_recipient_and_last_result_whatever_it_loses():
    earlier = [{"description": "x" * 1000}] * 3
    assert told(100, results=[*earlier, RESULT], id="1") == {"recipient": "a@a.test", "results": [RESULT]}
