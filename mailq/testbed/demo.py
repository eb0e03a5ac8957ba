"""What `mailq demo` plays: queues, sink, worker, four jobs, and the waiting for their results.

Declares the queues as any producer may, consumes the result queues over the house's own connection, and
knows what has to arrive. Ends the worker with SIGTERM, as an operator would; a guard (`testbed.guard`) does the
same when the demo itself is gone.
"""

import asyncio
import functools
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from mailq.config import Config
from mailq.core.broker.messages import Consumed, Publication
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.edges.amqp.consumer import Consumer
from mailq.edges.amqp.publisher import Publisher
from mailq.ports.broker import BrokerError
from mailq.sink.server import Sink
from mailq.testbed.certificates import Authority
from mailq.testbed.guard import guarded

DEADLINE = 30.0
"""Seconds from publishing to the last result."""

DRAIN = 15.0
"""Seconds that the worker gets to end after SIGTERM."""

_MIME = """\
From: Demo <sender@demo.test>
To: {recipient}
Subject: {subject}
Message-ID: <{recipient}>

Hello from mailq.
"""

Documents = dict[str, list[dict[str, Any]]]


class DemoError(Exception):
    """The demo did not come to its good end; the text says why."""


def jobs() -> list[dict[str, Any]]:
    """Return the jobs: accepted, greylisted and then accepted, rejected, and one that is none."""
    sender = "sender@demo.test"
    recipients = {
        "accept@demo.test": "accepted",
        "greylist@demo.test": "greylisted",
        "reject-550@demo.test": "rejected",
    }
    made: list[dict[str, Any]] = [
        {
            "id": f"demo-{subject}",
            "envelope": sender,
            "recipient": recipient,
            "mime": _MIME.format(recipient=recipient, subject=subject),
            "retries": [1],
            "tags": ["demo"],
        }
        for recipient, subject in recipients.items()
    ]
    return [*made, {"id": "demo-invalid", "envelope": sender, "recipient": "not an address", "mime": "x"}]


def expected(config: Config) -> Mapping[str, set[tuple[str, int, str]]]:
    """Return what has to arrive on each queue: recipient, number of attempts, state/result."""
    accepted = ("accept@demo.test", 1, "message/accepted")
    greylisted = ("greylist@demo.test", 2, "message/accepted")
    rejected, invalid = ("reject-550@demo.test", 1, "rcptto/error"), ("not an address", 1, "process/invalid")
    names = config.rabbitmq
    return {
        names.results: {accepted, greylisted, rejected, invalid},
        names.success: {accepted, greylisted},
        names.failures: {rejected, invalid},
        names.retry: {("greylist@demo.test", 1, "rcptto/error")},
    }


class Play:
    """One performance; its files go to `home`, an absolute path that exists.

    In a broker that is not `private` its exchange and queues have names of their own, and are deleted at the end
    unless they are to be kept.
    """

    def __init__(self, home: Path, url: str, say: Callable[[str], None], *, private: bool, keep: bool) -> None:
        self._home = home
        self._url = url
        self._say = say
        self._tidy = not private and not keep
        prefix = f"demo-{secrets.token_hex(3)}."
        keys = ("exchange", "outbox", "poison", "results", "success", "failures", "retry")
        self._names = {key: f"{prefix}{key}" for key in keys} if not private else {}
        self.config = Config.model_validate({"rabbitmq": {"url": url} | self._names})
        self._documents: Documents = {name: [] for name in expected(self.config)}
        self._arrivals: asyncio.Queue[BrokerError | None] = asyncio.Queue()

    async def perform(self) -> Documents:
        """Do it all and return the documents that arrived, by queue.

        Raises:
            DemoError: something did not arrive, or is not as it has to be.
            BrokerError: the broker cannot be reached or was lost.
        """
        authority = Authority.create(self._home / "certificates")
        certificate = authority.issue("sink.test", "localhost", "127.0.0.1")
        async with AsyncExitStack() as stack:
            publisher = await self._prepare(stack)
            sink = await stack.enter_async_context(Sink(tls=certificate.context(), hostname="sink.test"))
            self._say(f"receiving server with TLS on {sink.host}:{sink.port}")
            worker = await stack.enter_async_context(self._worker(sink, authority.file))
            self._say(f"worker started, publishing {len(jobs())} jobs to {self.config.rabbitmq.outbox}")
            await publisher.publish([self._publication(job) for job in jobs()])
            await self._results(worker)
            await self._end(worker)
            self._check(sink)
        return self._documents

    async def _prepare(self, stack: AsyncExitStack) -> Publisher:
        """Declare the queues, consume the result queues, and return the way to the outbox."""
        settings = self.config.rabbitmq
        control = await self._connect(stack)
        await topology.prepare(control, settings)
        if self._tidy:
            stack.push_async_callback(self._delete_queues, control)
        for name in self._documents:
            connection = await self._connect(stack)
            connection.closed.add_done_callback(lambda closed: self._arrivals.put_nowait(closed.result()))
            await Consumer(connection, name, 100, functools.partial(self._arrived, name)).start()
        publisher = Publisher(await self._connect(stack), settings.confirm_timeout, lambda _reason: None)
        await publisher.start()
        return publisher

    async def _connect(self, stack: AsyncExitStack) -> Connection:
        settings = self.config.rabbitmq
        connection = await Connection.open(
            Address.of(settings),
            f"mailq demo {os.getpid()}",
            heartbeat=settings.heartbeat,
            connect_timeout=settings.connect_timeout,
            answer_timeout=settings.confirm_timeout,
        )
        stack.push_async_callback(connection.close)
        return connection

    async def _delete_queues(self, control: Connection) -> None:
        """Remove what was declared in a broker that is not ours."""
        with suppress(BrokerError):
            await topology.delete(control, self.config.rabbitmq)

    def _arrived(self, queue: str, consumed: Consumed) -> None:
        self._documents[queue].append(orjson.loads(consumed.body))
        self._arrivals.put_nowait(None)

    @asynccontextmanager
    async def _worker(self, sink: Sink, ca_file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `mailq run` as a process of its own, under a guard; both are gone at the end."""
        file = self._home / "mailq.toml"
        tables: dict[str, dict[str, object]] = {
            "rabbitmq": {**self._names},
            "delivery": {"ehlo": "worker.demo.test", "retry_jitter": 0},
            "tls": {"ca_file": str(ca_file)},
            "http": {"port": 0},
            "worker": {"processes": 1, "drain_timeout": 5, "journal_dir": str(self._home / "journal")},
        }
        lines = [f"[{table}]\n" + "".join(_line(*item) for item in keys.items()) for table, keys in tables.items()]
        file.write_text("\n".join(lines) + f'\n[dns.overrides]\n"*" = ["{sink.host}:{sink.port}"]\n')
        # The URL may hold a password: it goes by the environment, and nothing else of ours does.
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
        with (self._home / "worker.log").open("wb") as log:
            worker = await asyncio.create_subprocess_exec(
                *guarded(sys.executable, "-m", "mailq", "run", "--config", str(file)),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env=environ | {"MAILQ_RABBITMQ__URL": self._url}, start_new_session=True,
            )  # fmt: skip
        try:
            yield worker
        finally:
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)
                await worker.wait()

    def _publication(self, job: dict[str, Any]) -> Publication:
        return Publication("", self.config.rabbitmq.outbox, orjson.dumps(job), message_id=job["id"])

    async def _results(self, worker: asyncio.subprocess.Process) -> None:
        """Wait until as many documents arrived on each queue as have to."""
        gone = asyncio.create_task(worker.wait())
        gone.add_done_callback(lambda _: self._arrivals.put_nowait(None))
        wanted = expected(self.config)
        try:
            async with asyncio.timeout(DEADLINE):
                while any(len(self._documents[name]) < len(wanted[name]) for name in wanted):
                    trouble = await self._arrivals.get()
                    if trouble is not None:
                        raise trouble
                    if gone.done():
                        raise DemoError(f"the worker ended with status {worker.returncode}\n{self._log()}")
        except TimeoutError:
            raise DemoError(f"not everything arrived in {DEADLINE:g} s: {self._missing()}\n{self._log()}") from None
        finally:
            gone.cancel()

    async def _end(self, worker: asyncio.subprocess.Process) -> None:
        """Drain the worker: its guard sends it SIGTERM."""
        assert worker.stdin is not None
        worker.stdin.close()
        try:
            async with asyncio.timeout(DRAIN):
                status = await worker.wait()
        except TimeoutError:
            raise DemoError(f"the worker did not end within {DRAIN:g} s of SIGTERM\n{self._log()}") from None
        if status:
            raise DemoError(f"the worker ended with status {status}\n{self._log()}")

    def _check(self, sink: Sink) -> None:
        """Make sure that the right things arrived, and that mail was encrypted."""
        if missing := self._missing():
            raise DemoError(f"not everything is as it has to be: {missing}\n{self._log()}")
        if sink.accepted != 2 or not all(message.session.tls for message in sink.messages):
            raise DemoError(f"the receiving server took {sink.accepted} messages, not 2, or not all with TLS")

    def _missing(self) -> str:
        """Return what did not arrive where it has to, and what arrived instead."""
        parts = []
        for name, wanted in expected(self.config).items():
            came = {_summary(document) for document in self._documents[name]}
            parts += [f"{name} lacks {_words(each)}" for each in sorted(wanted - came)]
            parts += [f"{name} has {_words(each)}" for each in sorted(came - wanted)]
        return "; ".join(parts)

    def _log(self) -> str:
        """Return the last lines that the worker wrote."""
        lines = (self._home / "worker.log").read_text(errors="replace").splitlines()
        return "\n".join(["the worker's last words:", *lines[-15:]])


def _line(key: str, value: object) -> str:
    """Return one line of TOML; a JSON string or number is one of TOML too."""
    return f"{key} = {orjson.dumps(value).decode()}\n"


def _summary(document: dict[str, Any]) -> tuple[str, int, str]:
    last = document["results"][-1]
    return str(document["recipient"]), len(document["results"]), f"{last['state']}/{last['result']}"


def _words(summary: tuple[str, int, str]) -> str:
    recipient, attempts, ending = summary
    return f"{recipient} {ending} after {attempts} attempt{'s' * (attempts > 1)}"
