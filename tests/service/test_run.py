"""Several processes under one command: they share the work, die, come back, drain and speak with one voice."""

import asyncio
import itertools
import os
import signal
from collections import Counter
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.proxy import Proxy
from support.system import until

from mailq.testbed.free_port import free_port


def series(page):
    """Return {(name, *sorted label values): value} of a page."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def figures(run):
    return series((await run.page("/metrics", want=200))[1])


def taken(receiver):
    return Counter(message.recipient for message in receiver.messages)


async def test_three_processes_deliver_each_job_once_and_one_page_has_the_sum(start, sink, publish, reported):
    receiver = await sink()
    run = await start(3, receiver=receiver.port, worker={"sessions": 5, "prefetch": 20})
    recipients = await publish(300, local="slow-20")

    assert sorted(await reported(300)) == sorted(recipients)
    assert taken(receiver) == Counter(recipients)
    page = await figures(run)
    assert page["mailq_attempts_total", "accepted", "message"] == 300
    assert page["mailq_state_seconds_count", "message"] == 300
    assert page["mailq_state_seconds_bucket", "+Inf", "message"] == 300
    assert page["mailq_verdicts_total", "success"] == 300
    for index in "012":
        assert page["mailq_broker_connected", index] == 1
        assert page["mailq_process_up", index] == 1
        assert page["process_resident_memory_bytes", index] > 1_000_000
    attempts = Counter(line["recipient"] for line in run.lines(event="attempt"))
    assert attempts == Counter(recipients)
    assert await run.page("/healthz") == (200, "ok\n")
    assert await run.end() == 0
    assert run.living() == set()


async def test_a_process_killed_under_load_is_replaced_and_no_job_is_lost(start, sink, publish, reported, rabbit):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"sessions": 4, "prefetch": 8})
    recipients = await publish(150, local="slow-50")
    await until(lambda: len(receiver.messages) > 20)
    victim = run.pids()[1]

    os.kill(victim, signal.SIGKILL)

    await until(lambda: run.pids()[1] != victim)
    (death,) = run.lines(event="process", change="died")
    assert (death["process"], death["pid"], death["status"]) == (1, victim, "signal SIGKILL")
    await run.page("/readyz", want=200)
    more = await publish(50, local="slow-50", first=150)
    await until(lambda: taken(receiver).keys() == {*recipients, *more}, 60)
    page = await figures(run)
    assert page["mailq_process_restarts_total", "1"] == 1
    assert page["mailq_process_restarts_total", "0"] == 0
    assert await run.end() == 0
    told = await reported(await rabbit.count("success"))
    doubtful = [orjson.loads(each.body) for each in await rabbit.get_many("retry", await rabbit.count("retry"))]
    assert all(document["results"][0]["in_doubt"] for document in doubtful)
    assert len(doubtful) <= 4  # those whose final answer it awaited; they are tried again when it is time
    everyone = [*told, *(document["recipient"] for document in doubtful)]
    assert set(everyone) == {*recipients, *more}
    assert len(everyone) - 200 <= 8  # it may have died with a result published and not confirmed: then it is told again
    assert taken(receiver) == Counter([*recipients, *more])
    assert await rabbit.count("outbox") == 0


async def test_sigterm_under_load_drains_all_processes_and_gives_the_rest_back(start, sink, publish, reported, rabbit):
    receiver = await sink()
    run = await start(3, receiver=receiver.port, worker={"sessions": 2, "prefetch": 10})
    recipients = await publish(200, local="slow-100")
    await until(lambda: len(receiver.messages) > 20)

    assert await run.end() == 0

    assert run.living() == set()
    done = taken(receiver)
    assert max(done.values()) == 1
    assert 20 < len(done) < 200
    assert sorted(await reported(len(done))) == sorted(done)
    assert await rabbit.count("outbox") == 200 - len(done)
    rest = {document for document in recipients if document not in done}
    assert len(rest) == await rabbit.count("outbox")
    assert len(run.lines(event="process", change="ended")) == 3


async def test_a_signal_to_the_whole_group_is_one_wish(start, sink, publish, reported):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"sessions": 2})
    await publish(30, local="slow-300")
    await until(lambda: len(receiver.messages) > 2)

    for pid in run.living():
        os.kill(pid, signal.SIGTERM)
    assert await run.end() == 0

    done = taken(receiver)
    assert sorted(await reported(len(done))) == sorted(done)


async def test_workers_whose_supervisor_is_killed_drain_and_end(start, sink, publish, reported, rabbit):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"sessions": 3})
    await publish(100, local="slow-200")
    await until(lambda: len(receiver.messages) > 5)
    assert len(run.living()) == 2

    run.process.kill()
    await run.process.wait()

    await until(lambda: not run.living(), 30)
    done = taken(receiver)
    assert max(done.values()) == 1
    assert sorted(await reported(len(done))) == sorted(done)
    assert await rabbit.count("outbox") == 100 - len(done)


async def test_a_process_that_dies_at_start_again_and_again_is_started_ever_more_seldom(start, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif any(word == '--child' for word in sys.orig_argv): os._exit(7)\n"
    )
    run = await start(2, ready=False, environ={"PYTHONPATH": str(folder)})

    def deaths():
        return [line for line in run.lines(event="process", change="died") if line["process"] == 0]

    await until(lambda: len(deaths()) == 4, 60)
    moments = [datetime.fromisoformat(line["time"]).timestamp() for line in deaths()]
    gaps = [late - early for early, late in itertools.pairwise(moments)]
    for gap, pause in zip(gaps, (1, 2, 4), strict=True):
        assert pause <= gap < pause + 3
    assert {line["status"] for line in deaths()} == {"exit status 7"}
    status, reason = await run.page("/healthz")
    assert status == 503
    assert "process 0: is not running" in reason
    assert (await run.page("/readyz"))[0] == 503
    assert (await figures(run))["mailq_process_restarts_total", "0"] >= 3
    assert await run.end() == 0


async def test_a_process_that_hangs_is_named_and_its_counts_stay(start, sink, publish, reported):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"prefetch": 5, "sessions": 1})
    await publish(40, local="slow-20")
    await reported(40)
    before = await figures(run)
    victim = run.pids()[0]

    os.kill(victim, signal.SIGSTOP)

    assert await run.page("/healthz") == (503, "process 0: does not answer\n")
    assert (await run.page("/readyz"))[0] == 503
    page = await figures(run)
    assert before["mailq_verdicts_total", "success"] == page["mailq_verdicts_total", "success"] == 40
    assert (page["mailq_process_up", "0"], page["mailq_process_up", "1"]) == (0, 1)
    assert ("mailq_broker_connected", "0") not in page
    os.kill(victim, signal.SIGCONT)
    await run.page("/healthz", want=200)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: run.pids()[0] != victim)
    await run.page("/readyz", want=200)
    assert (await figures(run))["mailq_verdicts_total", "success"] == 40


@pytest.mark.parametrize("processes", [1, 2])
async def test_classic_queues_are_warned_of_once(start, sink, rabbit, processes):
    receiver = await sink()
    classic = {"url": rabbit.url, "queue_type": "classic"}
    run = await start(processes, receiver=receiver.port, rabbitmq=classic)
    (line,) = run.lines(event="configuration")
    assert line["level"] == "warning"
    assert line["detail"].endswith('set rabbitmq.queue_type = "quorum"')
    assert await run.end() == 0


async def test_processes_drain_in_time_and_cleanly_though_the_broker_hangs(start, sink, rabbit):
    receiver = await sink()
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        url = rabbit.url_at(proxy.port)
        run = await start(2, receiver=receiver.port, rabbitmq={"url": url}, worker={"drain_timeout": 2})
        proxy.stall()
        run.process.send_signal(signal.SIGTERM)
        await until(lambda: run.lines(event="supervisor", change="drain"))
        assert await run.end() == 0
        assert run.lines(event="process", change="killed") == []


async def test_a_process_that_does_not_end_is_killed_and_that_is_no_clean_end(start, sink):
    receiver = await sink()
    run = await start(2, receiver=receiver.port, worker={"drain_timeout": 0})
    os.kill(run.pids()[1], signal.SIGSTOP)

    assert await run.end() == 1

    assert run.living() == set()
    (ended,) = run.lines(event="process", change="ended")
    assert ended["process"] == 0
    (killed,) = run.lines(event="process", change="died")
    assert (killed["process"], killed["status"]) == (1, "signal SIGKILL")


async def test_workers_listen_on_no_port_and_no_argument_tells_a_secret(start, sink, rabbit):
    receiver = await sink()
    run = await start(2, receiver=receiver.port)

    for pid in (run.process.pid, *run.living()):
        assert rabbit.url.encode() not in await asyncio.to_thread(Path(f"/proc/{pid}/cmdline").read_bytes)
    ports = {pid: await asyncio.to_thread(_listening, pid) for pid in (run.process.pid, *run.living())}
    assert ports.pop(run.process.pid) == {run.port}
    assert list(ports.values()) == [set(), set()]
    await run.end()


def _listening(pid):
    links = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_that_come_while_processes_begin_still_end_everything(start, number):
    run = await start(3, ready=False, receiver=free_port())
    await run.page("/metrics", want=200)

    assert await run.end(number) == 0
    assert run.living() == set()
