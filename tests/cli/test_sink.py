"""`mailq sink` as a process: what it prints, what it writes, how it ends."""

import asyncio
import os
import re
import signal
import smtplib
import socket
import ssl
import sys

import pytest

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
CONTENT = "Subject: one\r\n\r\nhello\r\n"


@pytest.fixture
async def start():
    """Start the command on a free port; returns the process and the port."""
    running = []

    async def run(*arguments):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "sink", "--port", "0", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENVIRON,
        )  # fmt: skip
        running.append(process)
        first = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", first)
        return process, int(found[1]) if found else 0

    yield run
    for process in running:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def _end(process):
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


async def test_a_line_for_each_message_and_an_end_after_count(start, tmp_path):
    process, port = await start("--count", "2", "--dir", str(tmp_path / "mail"))

    def talk():
        with smtplib.SMTP("127.0.0.1", port, local_hostname="c.test", timeout=20) as smtp:
            smtp.sendmail("a@x.test", ["b@y.test", "c@y.test"], CONTENT)
            smtp.sendmail("", ["b@y.test"], CONTENT)

    await asyncio.to_thread(talk)
    status, out, err = await _end(process)
    assert (status, err) == (0, "")
    first, second = (re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in out.splitlines())
    assert first == (
        "1  a@x.test -> b@y.test, c@y.test  23 octets  from 127.0.0.1 (c.test)  no TLS  session 1 message 1"
    )
    assert second.startswith("2  <> -> b@y.test  ")
    assert sorted(file.suffix for file in (tmp_path / "mail").iterdir()) == [".eml", ".eml", ".json", ".json"]


async def test_tls_and_auth_with_a_certificate_of_its_own(start):
    process, port = await start("--tls", "--auth", "jo:se:cret", "--require-auth", "--count", "1")
    ca_file = (await process.stdout.readline()).decode().removeprefix("certificate is issued by ").strip()

    def talk():
        with smtplib.SMTP("localhost", port, timeout=20) as smtp:
            smtp.starttls(context=ssl.create_default_context(cafile=ca_file))
            smtp.login("jo", "se:cret")
            smtp.sendmail("a@x.test", ["b@y.test"], CONTENT)

    await asyncio.to_thread(talk)
    status, out, _ = await _end(process)
    assert status == 0
    assert "TLSv1.3 TLS_AES_256_GCM_SHA384  user jo" in out
    assert not await asyncio.to_thread(os.path.exists, ca_file)


async def test_faults_and_missing_extensions(start):
    _, port = await start("--fault", "ehlo=502", "--without", "PIPELINING")
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as smtp:
        assert smtp.ehlo()[0] == 502
        assert smtp.helo()[0] == 250


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_when_asked_to(start, number):
    process, port = await start()
    with socket.create_connection(("127.0.0.1", port), timeout=20):
        process.send_signal(number)
        assert await _end(process) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fault", "dns=drop"], "'dns' is no state of the sink"),
        (["--without", "CHUNKING"], "no such extension: CHUNKING"),
        (["--auth", "nobody"], "--auth is of the form USER:PASSWORD"),
    ],
)
async def test_wrong_options_are_told(start, arguments, complaint):
    process, _ = await start(*arguments)
    status, _, err = await _end(process)
    assert status == 2
    assert err.startswith(f"mailq: {complaint}")


async def test_a_port_in_use_is_one_clear_line(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process, _ = await start("--port", str(port))
        reason = "Address already in use; choose another port with --port, or 0 for a free one"
        assert await _end(process) == (1, "", f"mailq: cannot listen on 127.0.0.1:{port}: {reason}\n")


async def test_help_has_the_table_of_behaviours(start):
    process, _ = await start("--help")
    _, out, _ = await _end(process)
    for word in ("reject-NNN[-STATE]", "drop-after-dot", "greylist[-N]", "slow-MS[-STATE]"):
        assert word in out
