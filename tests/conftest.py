"""Fixtures for all tests; the servers behind them live in `tests/support`."""

import importlib.util
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.alone import turn

_SERVERS = ("support.rabbitmq", "support.knot", "support.receivers", "support.exim", "support.system")

pytest_plugins = [name for name in _SERVERS if importlib.util.find_spec(name)]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background; what tests start would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast examples are made and tried is a fact of the machine and of what else runs there.
settings.register_profile("mailq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mailq")

ON_EVERY_BROKER = (
    "edges/amqp/",
    "cli/test_check.py",
    "cli/test_poison.py",
    "cli/test_watch.py",
    "cli/test_webhooks_dead.py",
    "scenarios/test_broker_trouble.py",
    "scenarios/test_lifecycle.py",
    "scenarios/test_nothing_lost.py",
    "scenarios/test_poison.py",
    "scenarios/test_producers_and_the_broker.py",
    "scenarios/test_publications.py",
    "torture/test_torture.py",
    "webhooks/",
)
"""Tests that depend on the broker's version; `make test RABBITMQ=4.3` runs these and no others."""


SLOW_FIRST = ("torture/", "bench/", "test_install", "service/", "scenarios/", "cli/", "edges/amqp/", "webhooks/")
"""Tests that parallel processes begin with; what takes milliseconds fills their gaps at the end."""

TOGETHER = ("core/", "config/", "dialogues/", "fuzz/", "cli/test_help", "test_generated", "test_install")
"""Tests of which one process takes a whole file: they are quick, or share what takes long to make."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them `broker`, and put them in the order and the groups that parallel processes take them in."""
    here = Path(__file__).parent
    paths = {item: item.path.relative_to(here).as_posix() for item in items}
    for item, path in paths.items():
        if path.startswith(ON_EVERY_BROKER):
            item.add_marker(pytest.mark.broker)
        if path.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group(path))
    ranks = {
        item: next((n for n, each in enumerate(SLOW_FIRST) if path.startswith(each)), 99)
        for item, path in paths.items()
    }
    items.sort(key=lambda item: (item.get_closest_marker("alone") is not None, ranks[item]))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of pytest-timeout starts
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Let tests marked `alone` run when no other process of a parallel run has a test under way."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name octets and long texts by their argument: some, as of gzip and certificates, differ in each process.

    All processes of a parallel run must collect the same tests in the same order.
    """
    return argname if isinstance(val, (bytes, str)) and len(val) > (40 if isinstance(val, str) else 0) else None
