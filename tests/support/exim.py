"""A real Exim as receiver: Debian's binary, unpacked beside the Postfix with which it cannot be installed.

Fixture:
    exim: a factory; `exim(pipelining=False)` starts an `EximReceiver` that ends with the test. It takes mail
        for any local part at `exim.test` but those that begin with `refused+`, and offers STARTTLS (certificate of
        `certificates` for `mx.exim.test`, localhost, 127.0.0.1).

Exim answers a client that sends ahead without having been offered PIPELINING with 554 and hangs up, and logs it.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailq.testbed.certificates import Authority, ServerCertificate
from mailq.testbed.free_port import free_port
from mailq.testbed.guard import guarded

PROGRAM = Path(__file__).parents[2] / ".run/debian/usr/sbin/exim4"
"""Where scripts/setup has put it."""

_CONFIG = """\
exim_path = {home}/exim4
keep_environment = LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
primary_hostname = mx.exim.test
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
pid_file_path = {home}/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
smtp_banner = $primary_hostname ESMTP
tls_advertise_hosts = *
tls_certificate = {home}/server.pem
tls_privatekey = {home}/server.pem
pipelining_advertise_hosts = {pipelining}
smtp_accept_max = 100
smtp_accept_queue_per_connection = 0
deliver_drop_privilege
check_spool_space = 0
check_spool_inodes = 0
acl_smtp_rcpt = recipient

begin acl
recipient:
  deny local_parts = \\N^refused[+]\\N
       message = no such user here
  accept domains = exim.test
  deny message = relay not permitted

begin routers
all:
  driver = accept
  transport = mailbox

begin transports
mailbox:
  driver = appendfile
  directory = {home}/mail
  maildir_format
  return_path_add
  envelope_to_add
"""


class EximReceiver:
    """Debian's Exim with configuration, spool and mailbox of its own on a loopback port.

    It runs without privileges, as the user of the tests or, for root, as `nobody`. The binary insists on a user
    `Debian-exim`, which only the installed package makes: nss_wrapper tells it that this is its name. Its
    directory is no child of pytest's, since `nobody` must be able to enter it.
    """

    host = "127.0.0.1"

    def __init__(self, certificate: ServerCertificate, *, pipelining: bool = True) -> None:
        self.port = free_port()
        self.pipelining = pipelining
        self._certificate = certificate
        self._home: Path
        self._daemon: subprocess.Popen[bytes]
        self._user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())

    def start(self) -> None:
        """Write all files, start the daemon, and return when it greets (30 s at most)."""
        if not PROGRAM.exists():
            raise RuntimeError("Exim is missing; `make test` unpacks it")
        self._home = Path(tempfile.mkdtemp(prefix="mailq-exim-"))
        self._write_files()
        home, root = self._home, os.getuid() == 0
        with (home / "log/output").open("wb") as output:
            self._daemon = subprocess.Popen(
                guarded(str(home / "exim4"), "-C", str(home / "exim.conf"), "-bdf"),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=home,
                start_new_session=True,
                env={
                    "LD_PRELOAD": "libnss_wrapper.so",
                    "NSS_WRAPPER_PASSWD": str(home / "passwd"),
                    "NSS_WRAPPER_GROUP": str(home / "group"),
                },
                user=self._user.pw_uid if root else None,
                group=self._user.pw_gid if root else None,
                extra_groups=[] if root else None,
            )
        deadline = time.monotonic() + 30
        while not self._greets():
            if time.monotonic() > deadline or self._daemon.poll() is not None:
                log = self.log()
                self.stop()
                raise RuntimeError(f"Exim does not start:\n{log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the daemon and what it has started, and remove the directory."""
        assert self._daemon.stdin is not None
        self._daemon.stdin.close()
        self._daemon.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._daemon.pid, signal.SIGTERM)
        shutil.rmtree(self._home)

    def log(self) -> str:
        """Return what Exim has logged."""
        return "\n".join(file.read_text(errors="replace") for file in sorted((self._home / "log").iterdir()))

    def idle(self) -> bool:
        """Tell whether everything that was taken is delivered."""
        return not any((self._home / "spool/input").glob("*-H"))

    def raw(self) -> list[bytes]:
        """Return the files delivered, byte for byte: Return-path, Envelope-to, Received, then the message."""
        return [file.read_bytes() for file in (self._home / "mail/new").glob("*")]

    def _greets(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=5) as client:
            return client.recv(4) == b"220 "
        return False

    def _write_files(self) -> None:
        home, user = self._home, self._user
        home.chmod(0o755)
        for name in ("spool/input", "log", "mail"):
            (home / name).mkdir(parents=True)
        facts = {"home": home, "port": self.port, "pipelining": "*" if self.pipelining else ":"}
        (home / "exim.conf").write_text(_CONFIG.format(**facts))
        (home / "passwd").write_text(f"Debian-exim:x:{user.pw_uid}:{user.pw_gid}::/:/bin/false\n")
        (home / "group").write_text(f"Debian-exim:x:{user.pw_gid}:\n")
        pem = home / "server.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(self._certificate.key.read_bytes() + self._certificate.chain.read_bytes())
        # The checkout may be where `nobody` cannot go.
        shutil.copyfile(PROGRAM, home / "exim4")
        (home / "exim4").chmod(0o755)
        if os.getuid() == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, user.pw_uid, user.pw_gid)


EximFactory = Callable[..., EximReceiver]


@pytest.fixture
def exim(certificates: Authority) -> Iterator[EximFactory]:
    """Start Exims: `exim(pipelining=False)`."""
    with contextlib.ExitStack() as stack:

        def start(*, pipelining: bool = True) -> EximReceiver:
            certificate = certificates.issue("mx.exim.test", "localhost", "127.0.0.1")
            receiver = EximReceiver(certificate, pipelining=pipelining)
            receiver.start()
            stack.callback(receiver.stop)
            return receiver

        yield start
