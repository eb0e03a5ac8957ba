"""Receiving SMTP servers for tests: our own sink, which misbehaves on demand, and a real Postfix.

Fixtures:
    certificates: a test CA for the whole run (`mailq.testbed.certificates.Authority`).
    sink: a factory; `await sink(**options)` starts a `mailq.sink.server.Sink` that ends with the test.
        With `tls=True` it gets a certificate of `certificates` for 127.0.0.1, localhost and sink.test.
    postfix: one `PostfixReceiver` for the whole run. It takes mail for any local part at `postfix.test`
        and `postfix-two.test`, offers STARTTLS (certificate of `certificates` for `mx.postfix.test`, localhost,
        127.0.0.1), and after TLS AUTH for `USER` and `PASSWORD`, who may send to any domain (a smarthost).
        Read what was delivered with `await postfix.wait(recipient)`; use an address of your own in each test.
"""

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailq.sink.server import Sink
from mailq.testbed.certificates import Authority, ServerCertificate
from mailq.testbed.free_port import free_port
from mailq.testbed.guard import guarded

USER = "relay@postfix.test"
PASSWORD = "pass phrase"

_MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
shlib_directory = /usr/lib/postfix
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
mail_owner = postfix
setgid_group = postdrop
import_environment = MAIL_CONFIG
multi_instance_enable = no
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.postfix.test
mydestination =
mynetworks =
local_header_rewrite_clients =
alias_maps =
alias_database =
message_drop_headers =
smtpd_banner = $myhostname ESMTP
virtual_mailbox_domains = postfix.test, postfix-two.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
default_transport = virtual
message_size_limit = 20480000
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_recipient_restrictions =
smtpd_client_connection_rate_limit = 0
smtpd_tls_security_level = may
smtpd_tls_chain_files = {home}/etc/server.pem
smtpd_tls_loglevel = 0
smtpd_tls_received_header = yes
smtpd_sasl_auth_enable = yes
smtpd_tls_auth_only = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {home}/etc/sasl
smtpd_sasl_local_domain = postfix.test
smtpd_sasl_security_options = noanonymous
"""

_MASTER = """\
{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {home}/etc/sasl/sasldb2
mech_list: PLAIN LOGIN CRAM-MD5
"""

_QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace")


class PostfixReceiver:
    """Debian's Postfix with configuration, queue and mailboxes of its own on a loopback port.

    Postfix insists on root to start and runs its daemons as the user `postfix`; as a normal user this needs
    `sudo -n`. Its directory is no child of pytest's, since those daemons must be able to enter it.
    """

    host = "127.0.0.1"
    user = USER
    password = PASSWORD

    def __init__(self, certificate: ServerCertificate) -> None:
        self.port = free_port()
        self._certificate = certificate
        self._home: Path
        self._master: subprocess.Popen[bytes]
        self._sudo = () if os.getuid() == 0 else ("sudo", "-n")

    def start(self) -> None:
        """Write all files, start the master process, and return when it greets (30 s at most)."""
        if not Path("/usr/lib/postfix/sbin/master").exists() or not shutil.which("saslpasswd2"):
            raise RuntimeError("Postfix is missing: apt-get install postfix libsasl2-modules sasl2-bin")
        self._home = Path(tempfile.mkdtemp(prefix="mailq-postfix-"))
        self._write_files()
        with (self._home / "master.err").open("wb") as errors:
            self._master = subprocess.Popen(
                guarded(*self._sudo, "/usr/lib/postfix/sbin/master", "-c", str(self._home / "etc"), "-d"),
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not self._greets():
            if time.monotonic() > deadline or self._master.poll() is not None:
                log = self.log()
                self.stop()
                raise RuntimeError(f"Postfix does not start:\n{log}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the master process, which ends its daemons, and remove the directory."""
        if self._master.poll() is None:
            # Not by the pid of sudo: the master's own is in its lock file.
            pid = (self._home / "queue/pid/master.pid").read_text().strip()
            self._run("kill", "-TERM", pid)
            self._master.wait(30)
        assert self._master.stdin is not None
        self._master.stdin.close()
        self._run("rm", "-rf", str(self._home))

    def log(self) -> str:
        """Return what Postfix has logged."""
        files = (self._home / "master.err", self._home / "log/mail.log")
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    def delivered(self, recipient: str) -> list[bytes]:
        """Return the messages in the mailbox of `recipient`, oldest first, as the sender sent them.

        What Postfix puts on top (Return-Path to Received) is removed; it stores line ends as LF, here they
        are CRLF again.
        """
        return [_without_trace(raw).replace(b"\n", b"\r\n") for raw in self.raw(recipient)]

    def raw(self, recipient: str) -> list[bytes]:
        """Return the files delivered for `recipient`, oldest first, byte for byte."""
        box = self._home / "mail/all/new"
        files = sorted(box.glob("*"), key=lambda file: file.stat().st_mtime_ns)
        mark = f"\ndelivered-to: {recipient.lower()}\n".encode()
        return [raw for raw in map(Path.read_bytes, files) if mark in raw.partition(b"\nReceived:")[0].lower() + b"\n"]

    async def wait(self, recipient: str, count: int = 1, *, deadline: float = 20.0) -> list[bytes]:
        """Return `delivered(recipient)` as soon as there are `count` messages."""
        try:
            async with asyncio.timeout(deadline):
                while len(messages := self.delivered(recipient)) < count:  # noqa: ASYNC110 - a mailbox has no event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{len(messages)} of {count} for {recipient}\n{self.log()[-3000:]}") from None
        return messages

    def _run(self, *command: str, given: str | None = None) -> None:
        done = subprocess.run(
            [*self._sudo, *command], input=given, text=True, capture_output=True, check=False, timeout=30
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")

    def _greets(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=5) as client:
            return client.recv(4) == b"220 "
        return False

    def _write_files(self) -> None:
        home = self._home
        home.chmod(0o755)
        for name in ("etc", "data", "log", "mail", "etc/sasl", "queue/pid", "queue/maildrop", "queue/public"):
            (home / name).mkdir(parents=True)
        for name in _QUEUES:
            (home / "queue" / name).mkdir(mode=0o700)
        mailbox_owner = pwd.getpwnam("postfix") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        facts = {"home": home, "port": self.port, "uid": mailbox_owner.pw_uid, "gid": mailbox_owner.pw_gid}
        (home / "etc/main.cf").write_text(_MAIN.format(**facts))
        (home / "etc/master.cf").write_text(_MASTER.format(**facts))
        (home / "etc/server.pem").write_bytes(self._certificate.key.read_bytes() + self._certificate.chain.read_bytes())
        (home / "etc/sasl/smtpd.conf").write_text(_SASL.format(**facts))
        database = str(home / "etc/sasl/sasldb2")
        name, _, realm = USER.partition("@")
        self._run("saslpasswd2", "-p", "-c", "-f", database, "-u", realm, name, given=PASSWORD)
        queue = home / "queue"
        self._run("chown", "postfix", database, str(home / "data"), *(str(queue / name) for name in _QUEUES))
        self._run("chown", "postfix:postdrop", str(queue / "maildrop"), str(queue / "public"))
        self._run("chmod", "1730", str(queue / "maildrop"))
        self._run("chmod", "2710", str(queue / "public"))
        self._run("chown", f"{facts['uid']}:{facts['gid']}", str(home / "mail"))


def _without_trace(raw: bytes) -> bytes:
    """Return a mailbox file without the header fields that Postfix has put on top."""
    head = re.match(rb"(?:(?:Return-Path|X-Original-To|Delivered-To):.*\n)*Received:.*\n(?:[ \t].*\n)*", raw)
    assert head, raw[:500]
    return raw[head.end() :]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make a certificate authority for the whole run."""
    return Authority.create(tmp_path_factory.mktemp("certificates"))


SinkFactory = Callable[..., Awaitable[Sink]]


@pytest.fixture
async def sink(certificates: Authority) -> AsyncIterator[SinkFactory]:
    """Start sinks: `await sink(faults=["ehlo=502"], tls=True)`; all options are those of `Sink`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, tls: Any = None, **options: Any) -> Sink:
            if tls is True:
                tls = certificates.issue("127.0.0.1", "localhost", "sink.test").context()
            return await stack.enter_async_context(Sink(tls=tls or None, **options))

        yield start


@pytest.fixture(scope="session")
def postfix(certificates: Authority) -> Iterator[PostfixReceiver]:
    """Start one Postfix for the whole run."""
    receiver = PostfixReceiver(certificates.issue("mx.postfix.test", "localhost", "127.0.0.1"))
    receiver.start()
    yield receiver
    receiver.stop()
