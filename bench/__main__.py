"""One run from its options to its last line; whatever was started is ended, however it ends."""

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson
import uvloop

from bench import BenchError, classify, report
from bench.measure import Figures, Measurement
from bench.options import Options, parse
from bench.postfix import Postfix
from bench.servers import profile_file
from bench.soak import Soak
from mailq.ports.broker import BrokerError
from mailq.testbed.rabbitmq import LabError, PrivateRabbit

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Bench, print, and return the exit status: 0, or 1 if there are no true figures."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.directory.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(dir=options.directory.resolve()))
    except OSError as trouble:
        sys.stderr.write(f"bench: no files can be made in {options.directory}: {trouble.strerror}\n")
        return 1
    home.chmod(0o755)  # Postfix's daemons are users of their own
    try:
        if options.soak is None:
            _bench(options, home)
        else:
            _soak(options, home)
    except (BenchError, LabError, BrokerError) as trouble:
        sys.stderr.write(f"bench: {trouble}\n")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("bench: interrupted\n")
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    return 0


def _bench(options: Options, home: Path) -> None:
    say = _Teller()
    rounds = []
    for number in range(options.rounds):
        place = home / f"{number + 1}"
        place.mkdir()
        place.chmod(0o755)
        # Made before minutes of work: it may not be able to.
        postfix = Postfix(options, place, say) if options.versus else None
        rounds.append((_mailq(options, place, say), postfix.run() if postfix else {}))
    rules = classify.measure()
    report.show(options, rounds, rules)
    if options.profile:
        report.show_profile(profile_file(place))
    if options.keep:
        say(f"files are in {home}")
    report.print_json(options, rounds, rules)


def _soak(options: Options, home: Path) -> None:
    say = _Teller()
    say("starting a private RabbitMQ")
    with PrivateRabbit(home / "rabbitmq") as rabbit:
        books = uvloop.run(_unwinding(Soak(options, home, rabbit.url, say).run()))
    if options.keep:
        say(f"files are in {home}")
    sys.stdout.write(orjson.dumps(books.record()).decode() + "\n")
    sys.stdout.flush()
    if books.troubles:
        raise BenchError("\n".join(["the soak is not passed", *books.troubles]))


def _mailq(options: Options, home: Path, say: "_Teller") -> Figures:
    rabbit = PrivateRabbit(home / "rabbitmq")
    say(f"starting a private RabbitMQ on 127.0.0.1:{rabbit.port}")
    try:
        rabbit.start()
        pid = int(next((home / "rabbitmq" / "data").glob("*.pid")).read_text())
        return uvloop.run(_unwinding(Measurement(options, home, rabbit.url, pid, say).run()))
    finally:
        rabbit.stop()


async def _unwinding(work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and unwind in good order on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


class _Teller:
    """Says on standard error what is going on, and when."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self._began:5.1f} s] {text}\n")


if __name__ == "__main__":
    sys.exit(main())
