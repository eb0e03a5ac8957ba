"""Fixtures for all tests; the servers behind them live in `tests/support`."""

import importlib.util
import signal
from pathlib import Path

import pytest

_SERVERS = ("support.rabbitmq", "support.knot", "support.receivers", "support.exim", "support.system")

pytest_plugins = [name for name in _SERVERS if importlib.util.find_spec(name)]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background; what tests start would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ON_EVERY_BROKER = (
    "broker/",
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them `broker`."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(ON_EVERY_BROKER):
            item.add_marker(pytest.mark.broker)
