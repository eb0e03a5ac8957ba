"""SIGHUP to `mailq run`: patterns and rules change while it runs, a wrong configuration changes nothing."""

import os
import signal

import orjson
import pytest
from support.system import until

RETRY = "[[patterns]]\nid = 'live'\ncodes = ['4xx']\nretry = 3000\n"
FAIL = "[[patterns]]\nid = 'live'\ncodes = ['4xx']\nfail = true\n"
RULES = """\
version = "own-{version}"
[[rule]]
id = "own-{version}"
class = 22
code = "4xx"
text = "as asked"
examples = ["450 4.2.0 as asked"]
source = "our own"
"""


@pytest.fixture
async def reloading(start, sink, publish, rabbit, tmp_path):
    """Start a run with a configuration file to be changed, and tell what becomes of jobs."""
    file = tmp_path / "mailq.toml"

    class Reloading:
        async def begin(self, processes, text):
            file.write_text(text)
            receiver = await sink()
            self.processes = processes
            self.run = await start(processes, receiver=receiver.port, environ={"MAILQ_CONFIG": str(file)})

        async def hang_up(self, text, change, *, lines=1):
            """Write the file, send SIGHUP, and return the log lines that then tell of it, once they are there."""
            before = len(self.run.lines(event="reload", change=change))
            file.write_text(text)
            self.run.process.send_signal(signal.SIGHUP)
            await until(lambda: len(self.run.lines(event="reload", change=change)) >= before + lines)
            return self.run.lines(event="reload", change=change)[before:]

        async def results(self, queue, *, first=0, count=6):
            await publish(count, local="tempfail-450", first=first)
            await rabbit.wait_for_count(queue, count, deadline=30)
            return [orjson.loads(message.body)["results"][0] for message in await rabbit.get_many(queue, count)]

    return Reloading()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_retry_becomes_a_failure_and_a_wrong_file_changes_nothing(reloading, processes, rabbit):
    await reloading.begin(processes, RETRY)
    assert {result["patterns"][0] for result in await reloading.results("retry")} == {"live"}

    # The supervisor and each of its processes tell of it.
    await reloading.hang_up(FAIL, "taken", lines=1 if processes == 1 else processes + 1)
    assert {result["code"] for result in await reloading.results("failures", first=10)} == {450}

    (refused,) = await reloading.hang_up("[[patterns]]\nid = 'live'\nregex = '('\nretry = 5\n", "refused")
    assert "patterns.0.regex: is no regular expression" in refused["detail"]
    assert "mailq.toml" in refused["detail"]
    (refused,) = await reloading.hang_up("[[patterns\n", "refused")
    assert "mailq.toml: is not TOML" in refused["detail"]
    assert {result["code"] for result in await reloading.results("failures", first=20)} == {450}
    assert await rabbit.count("retry") == 0
    assert len(reloading.run.pids()) == (0 if processes == 1 else processes)  # nobody was started anew
    assert await reloading.run.end() == 0


async def test_what_needs_a_restart_is_named_and_not_taken(reloading):
    await reloading.begin(1, RETRY)

    (line,) = await reloading.hang_up("worker.sessions = 7\n[limits]\n" + FAIL, "refused")
    assert "limits" in line["detail"]
    (line,) = await reloading.hang_up("worker.sessions = 7\nsmarthost.hostname = 'gone.test'\n" + FAIL, "taken")

    assert line["level"] == "warning"
    assert line["needs_restart"] == ["worker", "smarthost"]
    assert line["patterns"] == 1
    assert {result["code"] for result in await reloading.results("failures")} == {450}


async def test_rule_files_are_read_again_under_a_supervisor(reloading, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.format(version=1))
    text = f"classification.rules = ['{rules}']\n"
    await reloading.begin(2, text)
    assert {result["rule"] for result in await reloading.results("retry")} == {"own-1"}

    rules.write_text(RULES.format(version=2))
    lines = await reloading.hang_up(text, "taken", lines=3)
    assert all("own-2" in line["ruleset"] for line in lines)
    assert {result["rule"] for result in await reloading.results("retry", first=10)} == {"own-2"}

    rules.unlink()
    (line,) = await reloading.hang_up(text, "refused")
    assert str(rules) in line["detail"]
    assert {result["rule"] for result in await reloading.results("retry", first=20)} == {"own-2"}


async def test_a_process_started_later_has_the_newest_patterns_and_sighup_to_a_worker_is_not_heeded(reloading):
    await reloading.begin(2, RETRY)
    await reloading.hang_up(FAIL, "taken", lines=3)
    victim = reloading.run.pids()[0]

    for pid in reloading.run.pids().values():
        os.kill(pid, signal.SIGHUP)
    await reloading.run.page("/readyz", want=200)
    assert reloading.run.lines(event="process", change="died") == []
    os.kill(victim, signal.SIGKILL)
    await until(lambda: reloading.run.pids()[0] != victim)
    await until(lambda: len(reloading.run.lines(event="broker", change="connected")) == 3, 30)
    await reloading.run.page("/readyz", want=200)

    assert {result["code"] for result in await reloading.results("failures", count=20)} == {450}
    # Lines are written a moment after the results are there.
    await until(lambda: any(line["outcome"] == "failure" for line in reloading.run.lines(event="attempt", process=0)))
