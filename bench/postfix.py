"""The same messages through Postfix on the same machine: the peer that mailq is measured against.

A Postfix of the bench's own: queue and configuration below the run's directory, master on a free
loopback port, ended by its pid. Its queue is filled by smtp-source while no queue manager runs; then it
is started anew with one, for each variant from a copy of that queue, and delivers to smtp-sink.
Deliveries are counted in its log. It runs as throughput asks: connections cached on demand or not,
many at once from the start, and through the same relay as mailq where there is one.
"""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import BenchError
from bench.jobs import message
from bench.measure import Phase
from bench.options import Options
from bench.servers import Server, program, receiver
from bench.usage import busy_seconds, cpu_snapshot
from mailq.testbed.free_port import free_port

LOOK = 0.02

_MASTER = "/usr/lib/postfix/sbin/master"

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
shlib_directory = /usr/lib/postfix
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
import_environment = MAIL_CONFIG
multi_instance_enable = no
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.bench.test
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
relayhost = [127.0.0.1]:{sink}
in_flow_delay = 0
default_process_limit = 200
qmgr_message_active_limit = 100000
qmgr_message_recipient_limit = 100000
default_destination_concurrency_limit = {concurrency}
initial_destination_concurrency = {concurrency}
smtp_connection_cache_on_demand = {cache}
smtp_tls_security_level = {tls}
smtp_tls_connection_reuse = {cache}
"""

_FILLING = """\
{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_DRAINING = """\
rewrite unix - - n - - trivial-rewrite
proxymap unix - - n - - proxymap
qmgr unix n - n 300 1 qmgr
smtp unix - - n - - smtp
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""

_QUEUES = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming"),
    *("maildrop", "private", "public", "saved", "trace"),
)
"""Directories below the queue's that belong to Postfix's user."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to set Postfix up: the bench counts its best."""

    cache: bool
    concurrency: int

    def __str__(self) -> str:
        """Return its name."""
        return f"connection cache {'on' if self.cache else 'off'}, concurrency {self.concurrency}"


VARIANTS = (Variant(cache=False, concurrency=50), Variant(cache=True, concurrency=50))
"""Of 20 and 50 at once, 50 was the faster one in both."""


class Postfix:
    """Drains of a private Postfix."""

    def __init__(self, options: Options, home: Path, say: Callable[[str], None]) -> None:
        if not Path(_MASTER).exists():
            raise BenchError("Postfix is not installed; on Debian and Ubuntu: apt-get install postfix")
        if os.getuid() != 0:
            raise BenchError("--vs postfix needs root: Postfix's master process insists on it")
        self._options = options
        self._home = home / "postfix"
        self._say = say
        self._lines = 0
        self._read = 0

    def run(self) -> dict[Variant, Phase]:
        """Measure all variants.

        Raises:
            BenchError: Postfix does not start, or does not deliver everything within the limit.
        """
        self._make_directories()
        found = {}
        with ExitStack() as stack:
            port, pids = receiver(stack, self._home, self._options)
            self._configure(port, VARIANTS[0])
            self._say(f"filling Postfix's queue with {self._options.jobs:,} messages")
            self._fill()
            for variant in VARIANTS:
                self._configure(port, variant)
                self._restore()
                found[variant] = self._drain(pids)
                self._say(f"Postfix, {variant}: {found[variant].rate:,.0f} messages/s")
        return found

    def _configure(self, port: int, variant: Variant) -> None:
        facts = {"home": self._home, "sink": port, "concurrency": variant.concurrency}
        facts |= {"cache": "yes" if variant.cache else "no", "tls": "may" if self._options.tls else "none"}
        (self._home / "etc/main.cf").write_text(_MAIN_CF.format(**facts))

    def _fill(self) -> None:
        """Let Postfix write the messages to its queue, once, and put that aside."""
        port = free_port()
        file = self._home / "message"
        file.write_text(message(self._options.size))
        addresses = ["-f", "bounces@sender.bench.test", "-t", "user@d0.bench.test", "-N"]
        counts = ["-s", "20", "-m", str(self._options.jobs), "-F", str(file)]
        source = [program("smtp-source", "postfix"), *addresses, *counts, f"127.0.0.1:{port}"]
        with self._master(_FILLING.format(port=port)) as master:
            master.listening(port)
            try:
                done = subprocess.run(  # noqa: S603 - a command of our own making, no shell
                    source, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10 * self._options.limit
                )
            except subprocess.TimeoutExpired:
                raise BenchError("Postfix does not take the messages in time") from None
        if done.returncode:
            raise BenchError(f"smtp-source failed: {done.stderr.decode(errors='replace')[-500:]}")
        (self._home / "queue/incoming").rename(self._home / "filled")

    def _restore(self) -> None:
        """Give the queue manager the full queue anew; it takes files by their name, owner and mode."""
        incoming, owner = self._home / "queue/incoming", pwd.getpwnam("postfix").pw_uid
        shutil.copytree(self._home / "filled", incoming, dirs_exist_ok=True)
        for path in (incoming, *incoming.iterdir()):
            os.chown(path, owner, -1)
        os.sync()

    def _drain(self, receivers: Mapping[str, int]) -> Phase:
        """Time deliveries from the first that the log shows to the last."""
        wanted, first = self._options.jobs, 0
        self._delivered()
        done = -self._lines
        with self._master(_DRAINING) as master:
            pids = {"postfix": master.pid, **receivers}
            deadline = time.perf_counter() + self._options.limit
            before, busy, began = cpu_snapshot(pids), busy_seconds(), time.perf_counter()
            while done + self._delivered() < wanted:
                master.check()
                if not first and done + self._lines > 0:
                    first = done + self._lines
                    before, busy, began = cpu_snapshot(pids), busy_seconds(), time.perf_counter()
                if time.perf_counter() > deadline:
                    break
                time.sleep(LOOK)
            seconds, after = time.perf_counter() - began, cpu_snapshot(pids)
            busy = busy_seconds() - busy
        count = done + self._lines
        if count < wanted:
            raise BenchError(f"Postfix delivered {count:,} of {wanted:,} within {self._options.limit:g} s (--limit)")
        cpu = {name: after[name] - before[name] for name in pids}
        return Phase(count - first, seconds, cpu, max(0.0, (busy - sum(cpu.values())) / seconds))

    def _delivered(self) -> int:
        """Return how many deliveries the log has shown so far."""
        log = self._home / "log/mail.log"
        if log.exists():
            with log.open("rb") as file:
                file.seek(self._read)
                text = file.read()
            whole = text.rfind(b"\n") + 1
            self._read += whole
            self._lines += text.count(b" status=sent ", 0, whole)
        return self._lines

    @contextmanager
    def _master(self, services: str) -> Iterator[Server]:
        """Run the master process with these services."""
        (self._home / "etc/master.cf").write_text(services)
        with Server("master", [_MASTER, "-c", str(self._home / "etc"), "-d"], self._home) as master:
            yield master

    def _make_directories(self) -> None:
        owner = pwd.getpwnam("postfix").pw_uid
        for name in ("etc", "log", "queue/pid"):
            (self._home / name).mkdir(parents=True)
        for name in ("data", *(f"queue/{each}" for each in _QUEUES)):
            (self._home / name).mkdir()
            os.chown(self._home / name, owner, -1)
