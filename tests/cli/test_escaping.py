"""No command lets a stranger's text reach the terminal as it is: control characters, direction marks, markup."""

import asyncio
import json
import os
import re
import sys

import pytest
from typer.testing import CliRunner

from mailq.cli import build
from mailq.core.escape import UNSAFE
from mailq.core.webhooks.endpoint import ENDPOINT, REASON

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "200"}
EVIL = (
    "\x1b[31m\x07\x7f\x85\x9b31m\u202egnp\u2066\u200f\u061c\u2028\u200b\ufeff\U000e0041 [red]x[/red] [link=http://a]y"
)
FORBIDDEN = re.compile(f"[{UNSAFE}]")


def check(text, *, json_lines=False):
    """Hold an output to being safe, to showing square brackets as they came, and to being JSON where it says so."""
    assert FORBIDDEN.search(text.replace("\n", "")) is None, ascii(text)
    assert "[red]x[/red]" in text, ascii(text)
    if json_lines:
        assert all(json.loads(each) for each in text.splitlines())


@pytest.fixture
def run(rabbit):
    async def run(*arguments, **environ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=ENVIRON | {"MAILQ_RABBITMQ__URL": rabbit.url} | environ,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return out.decode(), err.decode()

    return run


DOCUMENT = {
    "recipient": f"{EVIL}@a.test",
    EVIL: [EVIL],
    "results": [
        {"state": "rcptto", "result": "error", "time": "2030-01-01 11:00:00", "attempt": 1, "code": 550,
         "status": "5.1.1", "description": EVIL},
    ],
}  # fmt: skip
RAW = json.dumps(DOCUMENT, ensure_ascii=False).encode()
BODIES = (RAW, json.dumps(DOCUMENT, ensure_ascii=False, indent=1).encode(), EVIL.encode(), b"\xff\x9b" + EVIL.encode())


async def test_watch_and_json_of_watch(run, rabbit):
    await rabbit.declare("results", arguments={"x-queue-type": "quorum"})
    for body in BODIES:
        await rabbit.publish("results", body)
    lines, err = await run("watch", "results", "--count", "4")
    assert err == ""
    assert len(lines.splitlines()) == 4
    check("\n".join(lines.splitlines()[:2]))
    assert FORBIDDEN.search(lines.replace("\n", "")) is None
    out, _ = await run("watch", "results", "--count", "4", "--json")
    check(out, json_lines=True)
    first, second, *others = (json.loads(each) for each in out.splitlines())
    assert first == second == DOCUMENT
    assert others == [body.decode("utf-8", "replace") for body in BODIES[2:]]


async def test_poison_and_dead_events(run, rabbit):
    headers = {REASON: EVIL, ENDPOINT: EVIL, "x-mailq-state": EVIL, EVIL[:8]: EVIL}
    for queue in ("outbox.poison", "outbox", "webhooks.dead", "webhooks"):
        await rabbit.declare(queue, arguments={"x-queue-type": "quorum"})
    for queue in ("outbox.poison", "webhooks.dead"):
        for body in BODIES:
            await rabbit.publish(queue, body, headers=headers)
        await rabbit.publish(queue, RAW, message_id=f"i{EVIL}"[:60], headers=headers)
    for command, move in ((("poison",), "requeue"), (("webhooks", "dead"), "replay")):
        for form in ((), ("--json",)):
            out, err = await run(*command, "list", *form)
            assert err == ""
            check(out, json_lines=bool(form))
            for place in ("1", "4"):
                check((await run(*command, "show", place, *form))[0], json_lines=bool(form))
        check((await run(*command, move, "--all", "--dry-run"))[1 if move == "replay" else 0])
        _, err = await run(*command, "show", EVIL)
        check(err)


async def test_check_of_a_server_whose_greeting_is_hostile(run):
    async def greet(_, writer):
        writer.write(f"554 {EVIL}\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for form in ((), ("--json",)):
            out, _ = await run("check", "--connect", host, *form, COLUMNS="1000", MAILQ_DNS__LIFETIME="0.5")
            check(out)


def invoke(*arguments):
    outcome = CliRunner().invoke(build((arguments[0],)), list(arguments), env={"COLUMNS": "400"})
    return outcome.stdout, outcome.stderr


def test_classify_and_send(tmp_path):
    reply = f"550 5.1.1 {EVIL}".replace("\x85", "").replace("\u2028", "")
    for form in ((), ("--json",)):
        out, err = invoke("classify", reply, *form)
        assert FORBIDDEN.search((out + err).replace("\n", "")) is None
    corpus = tmp_path / "replies.toml"
    text = json.dumps(f"550 5.1.1 {EVIL}", ensure_ascii=True).replace("\\udb40\\udc41", "")
    corpus.write_text(f'[[page]]\nreplies = [[10, "hard", {text}], [1, "undetermined", {text}]]\n')
    for form in ((), ("--json",)):
        check(invoke("classify", "--corpus", str(corpus), *form)[0])
    jobs = tmp_path / f"jobs{EVIL[:5]}.json"
    jobs.write_text(json.dumps({"recipient": "a@a.test", "mime": "x", "queues": {EVIL: 1}}), "utf-8")
    out, err = invoke("send", str(jobs))
    assert FORBIDDEN.search((out + err).replace("\n", "")) is None
    assert err
    jobs.write_text(json.dumps({"recipient": EVIL, "mime": "x"}), "utf-8")
    out, err = invoke("send", str(jobs))
    assert FORBIDDEN.search((out + err).replace("\n", "")) is None
    assert err
