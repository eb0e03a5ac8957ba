"""Postfix's smtp-sink with its fault options."""

import os
import socket
import subprocess
import time

import pytest
from support.system import until

from mailq.testbed.free_port import free_port


@pytest.fixture
def smtp_sink(tmp_path):
    """Start smtp-sink with options; it ends with the test."""
    running = []

    def start(*options):
        port = free_port()
        user = ["-u", "nobody"] if os.getuid() == 0 else []  # root has to become somebody else
        process = subprocess.Popen(
            ["/usr/sbin/smtp-sink", *user, *options, f"127.0.0.1:{port}", "100"],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        running.append(process)
        wait_for(port)
        return port

    yield start
    for process in running:
        process.terminate()
        process.wait()


def wait_for(port):
    ends = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            assert time.monotonic() < ends
            time.sleep(0.02)


async def outcome(system, port, queue, **timeouts):
    mail = await system(port, timeouts=timeouts)
    await mail.send(recipient="x@a.test")
    await until(lambda: bool(mail.seen.attempts))
    result = (await mail.get(queue))["results"][0]
    return result["state"], result["result"], result.get("code")


async def test_plain(system, smtp_sink):
    assert await outcome(system, smtp_sink(), "success") == ("message", "accepted", 250)


async def test_without_esmtp(system, smtp_sink):
    assert await outcome(system, smtp_sink("-e"), "success") == ("message", "accepted", 250)


async def test_without_pipelining(system, smtp_sink):
    assert await outcome(system, smtp_sink("-p"), "success") == ("message", "accepted", 250)


@pytest.mark.parametrize(
    ("command", "state"),
    [("connect", "intro"), ("mail", "mailfrom"), ("rcpt", "rcptto"), ("data", "data"), (".", "message")],
)
async def test_hard_errors(command, state, system, smtp_sink):
    assert await outcome(system, smtp_sink("-f", command), "failures") == (state, "error", 500)


@pytest.mark.parametrize(
    ("command", "state"),
    [("connect", "intro"), ("mail", "mailfrom"), ("rcpt", "rcptto"), ("data", "data"), (".", "message")],
)
async def test_soft_errors(command, state, system, smtp_sink):
    assert await outcome(system, smtp_sink("-r", command), "retry") == (state, "error", 450)


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ("connect", "intro"),
        ("ehlo", "ehlo"),
        ("mail", "mailfrom"),
        ("rcpt", "rcptto"),
        ("data", "data"),
        (".", "message"),
    ],
)
async def test_disconnects(command, state, system, smtp_sink):
    assert (await outcome(system, smtp_sink("-q", command), "retry"))[:2] == (state, "lost")


async def test_a_server_that_answers_data_late_is_a_timeout(system, smtp_sink):
    assert (await outcome(system, smtp_sink("-p", "-w", "30"), "retry", data=0.3))[:2] == ("data", "timeout")
