"""Which sources a job may leave from: its `ips` come before its `pool`, as with MailerQ."""

from datetime import UTC, datetime

import orjson
import pytest

from mailq.config import Config
from mailq.config.delivery import SourceConfig
from mailq.core.jobs.job import Job
from mailq.core.smtp.failure import Failure
from mailq.delivery.stages.process import sources
from mailq.edges.sources import HostSources

NOW = datetime(2030, 1, 31, tzinfo=UTC)
SOURCES = [SourceConfig(ip="127.0.0.1", pool="bulk"), SourceConfig(ip="127.0.0.2", pool="fast")]


def found(**properties):
    job = Job.parse(orjson.dumps({"recipient": "to@example.org", **properties}), limit=10_000)
    return [source.ip for source in sources(job, Config().delivery, HostSources(SOURCES, "mta.test"), NOW)]


@pytest.mark.parametrize("pool", ["bulk", "fast", "unknown"])
def test_a_pool_beside_ips_is_ignored(pool):
    assert found(ips=["127.0.0.2"], pool=pool) == ["127.0.0.2"]
    assert found(ips="127.0.0.2", pool=pool) == ["127.0.0.2"]


def test_a_pool_alone_counts():
    assert found(pool="bulk") == ["127.0.0.1"]
    with pytest.raises(Failure, match="not configured"):
        found(pool="unknown")


def test_no_address_is_none_whatever_the_pool():
    with pytest.raises(Failure, match="none of the source addresses"):
        found(ips=[], pool="bulk")
