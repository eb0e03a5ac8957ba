"""Fixtures for all tests; the servers behind them live in `tests/support`."""

import importlib.util
import signal

_SERVERS = ("support.rabbitmq", "support.knot", "support.receivers", "support.exim", "support.system")

pytest_plugins = [name for name in _SERVERS if importlib.util.find_spec(name)]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background; what tests start would ignore it as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
