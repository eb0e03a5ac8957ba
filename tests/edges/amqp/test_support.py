"""The private RabbitMQ and the helpers that other tests stand on."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.broker import Remembering
from support.rabbitmq import Rabbit

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.broker import Broker
from mailq.testbed import rabbitmq as lab
from mailq.testbed.rabbitmq import LabError, PrivateRabbit


async def test_every_test_has_a_virtual_host_of_its_own(rabbit: Rabbit):
    assert not await rabbit.exists("outbox")
    await rabbit.declare("outbox")
    await rabbit.publish("outbox", b"hello", message_id="1", headers={"a": 1}, priority=3, content_encoding="gzip")
    await rabbit.wait_for_count("outbox", 1)
    message = await rabbit.get("outbox")
    assert (message.body, message.message_id, message.priority, message.content_encoding) == (b"hello", "1", 3, "gzip")
    assert message.headers["a"] == 1
    assert await rabbit.count("outbox") == 0


async def test_the_virtual_host_of_another_test_is_not_seen(rabbit: Rabbit):
    assert not await rabbit.exists("outbox")


def test_missing_rabbitmq_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv(lab.BIN_VARIABLE, raising=False)
    monkeypatch.setattr(lab, "_BIN", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"rabbitmq-server is not installed; .* apt-get install rabbitmq-server"):
        PrivateRabbit(tmp_path).start()


def test_a_directory_without_rabbitmq_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(lab.BIN_VARIABLE, str(tmp_path))
    with pytest.raises(LabError, match=rf"MAILQ_RABBITMQ_BIN names {tmp_path}, where there is no rabbitmq-server"):
        PrivateRabbit(tmp_path).start()


def test_a_failed_start_shows_the_log(tmp_path):
    with pytest.raises(LabError, match=r"ended while starting:(.|\n)*failed_to_prepare_configuration"):
        PrivateRabbit(tmp_path, settings={"no_such_setting": "1"}).start()


async def test_what_is_confirmed_survives_a_power_cut(tmp_path):
    with PrivateRabbit(tmp_path) as server:
        config = RabbitConfig(url=server.url)
        broker = await Broker.open(config, 10, Remembering())
        await broker.publish([Publication("", "results", b"%d" % n) for n in range(100)])
        await asyncio.to_thread(server.kill)
        assert not server.running
        assert "lost" in str(await broker.closed())
        await asyncio.to_thread(server.start)
        rabbit = Rabbit(server, "/")
        await rabbit.wait_for_count("results", 100)
        await rabbit.close()
        group = os.getpgid(server.pid)
        assert f"{server.pid} (beam.smp" in _group(group)
        assert any(name.endswith("(epmd") for name in _group(group))
    assert _group(group) == []
    with pytest.raises(LabError, match="not running"):
        assert server.pid
    assert not server.running


_ABANDON = """
import os, signal, sys
from pathlib import Path
from mailq.testbed.rabbitmq import PrivateRabbit
rabbit = PrivateRabbit(Path(sys.argv[1]))
rabbit.start()
print(rabbit._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_broker_ends_when_whoever_started_it_is_killed(tmp_path):
    done = subprocess.run([sys.executable, "-c", _ABANDON, tmp_path], capture_output=True, text=True, check=False)
    group = int(done.stdout)
    deadline = time.monotonic() + 20
    while alive := _group(group):
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


def _group(group: int) -> list[str]:
    """Return the commands of the living processes of a process group (zombies wait for their parent)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _parent, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found
