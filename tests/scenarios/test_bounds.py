"""Producers whose messages cost far more than their size: good jobs beside them go on, and memory stays bounded."""

import asyncio
import gzip
import json
import os
import re
import sys
import zlib
from pathlib import Path
from time import monotonic

import orjson
import pytest
from support.system import MIME, until

from mailq.testbed.free_port import free_port

DEADLINE = 60.0
MB = 1_000_000
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}


@pytest.fixture
async def lone_worker(rabbit, tmp_path):
    """Start one `mailq run` without a supervisor; yield its process and its log."""
    process = None
    log = tmp_path / "log"

    async def start(port):
        nonlocal process
        file = tmp_path / "mailq.toml"
        file.write_text(
            f'[dns.overrides]\n"*" = ["127.0.0.1:{port}"]\n[http]\nport = {free_port()}\n'
            '[delivery]\nehlo = "worker.test"\n'
        )
        command = (sys.executable, "-m", "mailq", "run", "--config", str(file), "--processes", "1")
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, stderr=output, env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url}, cwd=tmp_path
            )
        await until(lambda: b'"connected"' in log.read_bytes(), DEADLINE)
        return process, log

    yield start
    if process is not None and process.returncode is None:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), DEADLINE) == 0


def bomb(size):
    """Return gzip of so many spaces."""
    pack = zlib.compressobj(9, wbits=31)
    return b"".join(pack.compress(b" " * MB) for _ in range(size // MB)) + pack.flush()


def peak_rss(pid):
    """Return the most octets of memory that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024


def job(**properties):
    return orjson.dumps({"recipient": "accept@b.test", "mime": MIME, **properties})


def containers(size):
    return b'{"recipient":"accept@b.test","mime":"x","x":[' + b"{}," * (size // 3) + b"{}]}"


async def delay_of_good_job(rabbit, number):
    """Return the seconds from the publication of a good job to its result."""
    begun = monotonic()
    await rabbit.publish("outbox", job(id=f"good-{number}"))
    while orjson.loads((await rabbit.get("success", deadline=DEADLINE)).body).get("id") != f"good-{number}":
        pass
    return monotonic() - begun


@pytest.mark.alone
async def test_good_jobs_go_on_beside_messages_that_cost_far_more_than_their_size(rabbit, sink, lone_worker):
    receiver = await sink()
    process, log = await lone_worker(receiver.port)
    await delay_of_good_job(rabbit, "first")
    before = peak_rss(process.pid)
    honest, lying = bomb(int(os.environ.get("BOMB_MB", "200")) * MB), bomb(150 * MB) + b"\0" * 9
    hostile = [
        *[(honest, "gzip")] * 30,
        *[(lying, "gzip")] * 5,
        (gzip.compress(containers(95 * MB), 9), "gzip"),
        *[(containers(MB // 4), None)] * 20,
        (job(ips=["192.0.2.1"] * 300_000), None),
        (job(tags=["a"] * 90_000), None),
        (job(mime="Subject: x\n\n" + "line, with: comma\n" * (20 * MB // 18)), None),
    ]

    for body, encoding in hostile:
        await rabbit.publish("outbox", body, content_encoding=encoding)
    delays = [await delay_of_good_job(rabbit, number) for number in range(40)]
    await until(lambda: log.read_bytes().count(b'"event":"poisoned"') == 36, DEADLINE)

    peak = peak_rss(process.pid)
    held = [json.loads(line) for line in log.read_bytes().splitlines() if b'"loop_held"' in line]
    sys.stdout.write(f"delays {sorted(delays)[-3:]}, rss {before >> 20} -> {peak >> 20} MB, {held}\n")
    assert max(delays) < 5.0  # measured on an idle machine: below 0.5
    assert peak - before < 700 * MB
    assert process.returncode is None
