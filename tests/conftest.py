"""Fixtures for all tests; the servers behind them live in `tests/support`."""

import importlib.util

_SERVERS = ("support.rabbitmq", "support.knot", "support.receivers", "support.exim", "support.system")

pytest_plugins = [name for name in _SERVERS if importlib.util.find_spec(name)]
