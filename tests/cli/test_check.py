"""`mailq check` against a real broker and a real DNS: what it sees, what it advises, its exit status."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mailq.cli import check_local
from mailq.cli.check import _print
from mailq.cli.check_remote import examine, message_size, webhooks
from mailq.cli.finding import Finding, Level
from mailq.config.dns import DnsConfig
from mailq.config.load import load
from mailq.core.delay_queues import STEPS
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection
from mailq.sink.server import Sink
from mailq.testbed.certificates import Authority
from mailq.testbed.free_port import free_port

DELAYS = [f"outbox.delay.{step}" for step in STEPS]
QUEUES = ("outbox", "outbox.poison", "results", "success", "failures", "retry")


@pytest.fixture
def write(rabbit, knot, tmp_path):
    """Write a configuration for the test's own servers, with more text at its end."""

    def write(text=""):
        file = tmp_path / "mailq.toml"
        file.write_text(
            f'[rabbitmq]\nurl = "{rabbit.url}"\n[dns]\nservers = ["{knot.server}"]\nprohibited = []\n'
            f'[delivery]\nehlo = "mta.example.com"\n{text}'
        )
        file.chmod(0o600)
        return file

    return write


@pytest.fixture
def check(write):
    """Return whether all is well (0) or something fails (1), and {what: finding}; keywords are the environment."""

    async def check(*, connect=None, domain="a.test", text="", **environ):
        file = write(text)
        findings = await examine(load(file, environ), file, domain, connect)
        seen = {finding.what: finding.as_json() for finding in findings}
        assert len(seen) == len(findings)
        return int(any(finding.level is Level.FAIL for finding in findings)), seen

    return check


@pytest.fixture
def command(write):
    """Run the program itself; returns its status and what it printed."""

    async def command(*arguments, file=None):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mailq", "check", "-c", str(file or write()), *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=inherited | {"COLUMNS": "150"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert err == b""
        return process.returncode, out.decode()

    return command


async def test_the_program_prints_a_table_or_json_and_its_status_tells(command):
    status, out = await command("--domain", "twomx.test")
    assert status == 0
    assert "twomx.test: mx1.twomx.test, mx2.twomx.test" in out
    status, out = await command("--domain", "twomx.test", "--json")
    assert status == 0
    assert {"level": "ok", "what": "broker", "seen": "connected"} in json.loads(out)
    status, out = await command("--domain", "gone.test")
    assert status == 1
    assert "Look at dns.servers" in out


async def declare(rabbit, *names):
    for name in names:
        await rabbit.declare(name)


async def test_before_the_first_run_all_is_well(check):
    status, seen = await check()
    assert status == 0
    assert {finding["level"] for finding in seen.values()} == {"ok"}
    assert seen["broker"]["seen"] == "connected"
    for name in QUEUES:
        assert "`mailq run` declares it" in seen[f"queue {name}"]["seen"]
    assert seen["dns"]["seen"] == "a.test: mx.a.test"
    assert seen["sources"]["seen"] == "chosen by the system, EHLO mta.example.com"


async def test_it_changes_nothing(check, rabbit):
    await check()
    for name in QUEUES:
        assert not await rabbit.exists(name)


async def test_missing_queues_are_failures_if_mailq_may_not_declare(check):
    status, seen = await check(MAILQ_RABBITMQ__DECLARE="false")
    assert status == 1
    for what in ("exchange mailq", *(f"queue {name}" for name in (*QUEUES, *DELAYS))):
        assert seen[what]["level"] == "fail"
        assert seen[what]["advice"]


async def test_queues_and_their_depths(check, rabbit):
    await declare(rabbit, *QUEUES, *DELAYS)
    await (await rabbit.channel()).declare_exchange("mailq", "topic", durable=True)
    for name in ("outbox", "outbox.poison", "outbox.delay.1h", "results"):
        await rabbit.publish(name, b"{}")
        await rabbit.wait_for_count(name, 1)
    status, seen = await check(MAILQ_RABBITMQ__DECLARE="false")
    assert status == 0
    assert seen["exchange mailq"]["seen"] == "is there"
    assert seen["queue results"] == {"level": "ok", "what": "queue results", "seen": "1 ready, 0 consumers"}
    assert seen["queue outbox"]["level"] == "warn"
    assert "mailq run" in seen["queue outbox"]["advice"]
    assert seen["queue outbox.poison"]["level"] == "warn"
    assert seen["queue outbox.delay.1h"]["seen"] == "1 ready, 0 consumers"
    assert seen["delay queues 1s … 24h"]["seen"] == f"{len(STEPS) - 1} queues: 0 ready, 0 consumers"


async def test_a_worker_is_a_consumer(check, rabbit):
    await rabbit.declare("outbox")
    queue = await (await rabbit.channel()).get_queue("outbox")

    async def ignore(_):
        pass

    await queue.consume(ignore, no_ack=True)
    _, seen = await check(MAILQ_RABBITMQ__DECLARE="false")
    assert seen["queue outbox"]["seen"] == "0 ready, 1 consumers"


async def test_one_delay_queue_is_missing(check, rabbit):
    await declare(rabbit, *DELAYS[1:])
    status, seen = await check(MAILQ_RABBITMQ__DECLARE="false")
    assert status == 1
    assert seen[f"queue {DELAYS[0]}"]["level"] == "fail"
    assert seen["delay queues 2s … 24h"]["level"] == "ok"


async def test_what_exists_differently_is_a_warning_with_its_costs(check, rabbit):
    await rabbit.declare("results")
    await rabbit.declare("outbox", arguments={"x-queue-type": "quorum"})
    await (await rabbit.channel()).declare_exchange("mailq", "topic", durable=False)
    status, seen = await check()
    assert status == 0
    assert "instead of 'quorum'; a classic queue has no replica" in seen["queue results"]["seen"]
    assert "without x-delivery-limit" in seen["queue outbox"]["seen"]
    assert "moves nothing to poison" in seen["queue outbox"]["seen"]
    assert "durable is 'false'" in seen["exchange mailq"]["seen"]
    assert {seen[what]["level"] for what in ("queue results", "queue outbox", "exchange mailq")} == {"warn"}


async def test_what_mailq_cannot_work_with_is_a_failure(check, rabbit):
    await rabbit.declare("outbox.delay.2m")
    await (await rabbit.channel()).declare_exchange("mailq", "fanout", durable=True)
    status, seen = await check()
    assert status == 1
    assert "another type: wanted 'topic', it has 'fanout'" in seen["exchange mailq"]["seen"]
    assert "jobs would be lost there" in seen["queue outbox.delay.2m"]["seen"]
    for what in ("queue outbox.delay.2m", "exchange mailq"):
        assert seen[what]["level"] == "fail"
        assert "elete it" in seen[what]["advice"]


async def test_queues_that_lose_messages_on_rabbitmq_4_are_told(check, rabbit, monkeypatch):
    def pretend(version):
        monkeypatch.setattr(Connection, "server", property(lambda _: version, lambda *_: None), raising=False)

    await rabbit.declare("results", arguments={"x-queue-type": "quorum"})
    pretend("3.13.7")
    _, seen = await check()
    assert seen["queue results"] == {"level": "ok", "what": "queue results", "seen": "0 ready, 0 consumers"}
    pretend("4.1.2")
    status, seen = await check()
    assert status == 0
    assert seen["queue results"]["seen"] == (
        "0 ready, 0 consumers; drops what was returned 20 times, unless a policy says delivery-limit -1"
    )
    assert "No client sees policies" in seen["queue results"]["advice"]
    _, seen = await check(MAILQ_RABBITMQ__DECLARE="false")
    assert seen["queue results"]["level"] == "ok"


@pytest.mark.parametrize(
    ("server", "mebi", "most"), [("3.10.8", 50, None), ("3.13.7", 200, 128), ("4.0.5", 16, None), ("4.3.6", 50, 16)]
)
def test_the_largest_message_is_held_against_what_the_broker_takes(server, mebi, most):
    found = message_size(server, mebi * 1024 * 1024)
    assert (found is None) is (most is None)
    if found is not None:
        assert (found.level, found.what) == (Level.OK, "message size")
        assert f"takes messages of {most} MiB" in found.seen
        assert f"delivery.max_message_size is {mebi} MiB" in found.seen
        assert "--gzip" in found.advice


async def test_classic_queues_are_a_warning_that_names_the_remedy(check):
    status, seen = await check(MAILQ_RABBITMQ__QUEUE_TYPE="classic")
    assert (status, seen["queue type"]["level"]) == (0, "warn")
    assert 'rabbitmq.queue_type = "quorum"' in seen["queue type"]["advice"]
    assert "queue type" not in (await check())[1]


async def test_what_a_worker_declared_is_well(check, rabbit):
    address = Address.of(rabbit.config())
    connection = await Connection.open(address, "test", heartbeat=10, connect_timeout=10, answer_timeout=10)
    await topology.prepare(connection, rabbit.config())
    await connection.close()
    status, seen = await check()
    assert status == 0
    assert seen["exchange mailq"]["seen"] == "is there"
    for name in QUEUES:
        assert seen[f"queue {name}"]["seen"] == "0 ready, 0 consumers"
    assert seen["delay queues 1s … 24h"]["seen"].startswith(f"{len(STEPS)} queues")


async def test_switched_off_queues_are_not_looked_at(check):
    _, seen = await check(MAILQ_RABBITMQ__SUCCESS="", MAILQ_RABBITMQ__RETRY="")
    assert not {"queue success", "queue retry"} & set(seen)


@pytest.mark.parametrize("trouble", ["password", "port", "vhost"])
async def test_a_broker_that_cannot_be_used(check, rabbit, trouble):
    url = {
        "password": rabbit.url_at(rabbit.server.port, login="guest:hunter2"),
        "port": rabbit.url_at(free_port(), login="guest:hunter2"),
        "vhost": f"amqp://guest:guest@127.0.0.1:{rabbit.server.port}/nowhere",
    }[trouble]
    status, seen = await check(MAILQ_RABBITMQ__URL=url)
    assert status == 1
    assert seen["broker"]["level"] == "fail"
    assert seen["broker"]["advice"]
    assert not [what for what in seen if what.startswith("queue")]
    assert "hunter2" not in json.dumps(seen)


async def test_amqps(check, rabbit, rabbit_tls):
    url = rabbit.url_at(rabbit_tls.port, scheme="amqps", host="localhost")
    status, seen = await check(MAILQ_RABBITMQ__URL=url, MAILQ_RABBITMQ__CA_FILE=str(rabbit_tls.ca_file))
    assert (status, seen["broker"]["seen"]) == (0, "connected")
    status, seen = await check(MAILQ_RABBITMQ__URL=url)
    assert status == 1
    assert "certificate" in seen["broker"]["seen"].lower()


@pytest.mark.parametrize(
    ("domain", "level", "words"),
    [
        ("twomx.test", "ok", "mx1.twomx.test, mx2.twomx.test"),
        ("implicit.test", "ok", "no MX records"),
        ("nullmx.test", "ok", "takes no mail"),
        ("gone.test", "fail", "does not exist"),
        ("broken.test", "fail", "SERVFAIL"),
        ("a..b", "fail", "a..b"),
    ],
)
async def test_dns(check, domain, level, words):
    status, seen = await check(domain=domain)
    assert seen["dns"]["level"] == level
    assert words in seen["dns"]["seen"]
    assert status == (1 if level == "fail" else 0)


@pytest.mark.parametrize(
    ("domain", "seen"),
    [
        ("a.test", "a.test: mx.a.test; not connected to: mx.a.test (127.0.0.1, in 127.0.0.0/8 of dns.prohibited)"),
        ("implicit.test", "the domain itself; not connected to: implicit.test (127.0.0.9, in 127.0.0.0/8 of "),
        ("numeric.test", "numeric.test: 127.0.0.1; not connected to: 127.0.0.1 (127.0.0.1, in 127.0.0.0/8 of "),
        ("halfmissing.test", "gone.halfmissing.test, mx.a.test; not connected to: mx.a.test (127.0.0.1"),
        ("mixed.test", "not connected to: mx.mixed.test (::1, in ::1/128 of dns.prohibited), mx.mixed.test (127.0.0.1"),
    ],
)
async def test_prohibited_addresses_are_told_with_the_remedy(check, domain, seen):
    prohibited = json.dumps(DnsConfig().prohibited)
    status, found = await check(domain=domain, MAILQ_DNS__PROHIBITED=prohibited)
    assert (status, found["dns"]["level"]) == (0, "warn")
    assert seen in found["dns"]["seen"]
    assert "192.0.2.1" not in found["dns"]["seen"]
    assert "dns.prohibited" in found["dns"]["advice"]
    _, found = await check(domain=domain, MAILQ_DNS__PROHIBITED=prohibited, MAILQ_SMARTHOST__HOSTNAME="relay.example")
    assert found["dns"]["level"] == "ok"


async def test_a_domain_that_has_an_override_is_well(check):
    for overrides in ('{"gone.test": ["127.0.0.1:2525"]}', '{"*": ["127.0.0.1:2525"]}'):
        status, seen = await check(domain="Gone.test", MAILQ_DNS__OVERRIDES=overrides)
        assert (status, seen["dns"]["level"]) == (0, "ok")
        assert seen["dns"]["seen"] == "Gone.test: 127.0.0.1:2525, as dns.overrides has it"
    status, _ = await check(domain="gone.test", MAILQ_DNS__OVERRIDES='{"a.test": ["127.0.0.1:2525"]}')
    assert status == 1


async def test_dns_trouble_is_a_warning_where_no_delivery_needs_it(check):
    _, seen = await check(domain="gone.test", MAILQ_SMARTHOST__HOSTNAME="gone.test")
    assert (seen["dns"]["level"], seen["smarthost gone.test:25"]["level"]) == ("warn", "fail")


async def test_sources(check):
    status, seen = await check(text='[[sources]]\nip = "127.0.0.1"\n[[sources]]\nip = "192.0.2.1"\nehlo = "b.example"')
    assert status == 1
    assert seen["source 127.0.0.1"]["level"] == "ok"
    assert "EHLO mta.example.com" in seen["source 127.0.0.1"]["seen"]
    assert seen["source 192.0.2.1"]["level"] == "fail"
    assert "no address of this host" in seen["source 192.0.2.1"]["seen"]


@pytest.mark.parametrize(
    ("greeting", "level", "words"),
    [
        (b"220 mx.example.net ESMTP\r\n", "ok", "220 mx.example.net ESMTP"),
        (b"554 go \x1b[31maway\r\n", "fail", "554 go ?[31maway"),
        (b"", "fail", ""),
        (b"2" * 100_000, "fail", ""),
    ],
)
async def test_outbound(check, greeting, level, words):
    heard = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        writer.write(greeting)
        if not greeting:
            writer.close()
        heard.set_result((writer.get_extra_info("peername")[0], await reader.read()))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        status, seen = await check(connect=host, text='[[sources]]\nip = "127.0.0.2"')
        peer, _ = await asyncio.wait_for(heard, 10)
    finding = seen[f"connect {host} from 127.0.0.2"]
    assert peer == "127.0.0.2"
    assert (status, finding["level"]) == (0 if level == "ok" else 1, level)
    assert words in finding["seen"]
    assert "??" not in finding["seen"]
    assert ("advice" in finding) is (level == "fail")


async def test_outbound_refused(check):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    status, seen = await check(connect=host)
    assert status == 1
    assert "smarthost" in seen[f"connect {host} from any address"]["advice"]


async def test_a_password_that_everybody_may_read(command, write):
    file = write('[smarthost]\nusername = "me"\npassword = "hunter2"\n')
    _, out = await command("--json", file=file)
    assert json.loads(out)[0] == {"level": "ok", "what": "configuration", "seen": str(file)}
    file.chmod(0o644)
    _, out = await command("--json", file=file)
    assert json.loads(out)[0]["level"] == "warn"
    assert json.loads(out)[0]["advice"] == f"chmod o-r {file}"
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("", False),
        ('[rabbitmq]\nurl = "amqp://guest:guest@mq.test/"', False),
        ('[rabbitmq]\nurl = "amqp://joe:hunter2@mq.test/"', True),
        ('[webhooks.endpoints.crm]\nurl = "https://crm.test/"\nsecrets = ["0123456789abcdef"]', True),
    ],
)
def test_a_password_of_the_environment_is_not_one_of_the_file(tmp_path, monkeypatch, text, secret):
    monkeypatch.setenv("MAILQ_RABBITMQ__URL", "amqp://joe:hunter2@127.0.0.1/")
    file = tmp_path / "open.toml"
    file.write_text(text)
    file.chmod(0o644)
    (finding,) = check_local.configuration(file)
    assert (finding.level is Level.WARN) is secret


def test_the_table_shows_what_and_advice_as_they_are(capsys):
    _print([Finding(Level.FAIL, "queue [bold]x", "is not [there]", "Do [this].")])
    shown = capsys.readouterr().out
    for words in ("fail", "queue [bold]x", "is not [there]", "Do [this]."):
        assert words in shown


RULES = """
version = "own.1"
[[rule]]
id = "own-full"
class = 22
text = 'no room at the inn'
source = "what our partner told us"
"""


@pytest.fixture
def local(tmp_path):
    """Return {what: finding} of a configuration, of which only this host is looked at."""

    def local(text="", mounts=None, **environ):
        file = tmp_path / "local.toml"
        file.write_text(text)
        config = load(file, {"MAILQ_WORKER__JOURNAL_DIR": str(tmp_path / "new" / "journal")} | environ)
        findings = [*check_local.meaning(config), *check_local.limits(config)]
        findings.append(check_local.journal(config, mounts))
        return {finding.what: finding.as_json() for finding in findings}

    return local


def test_the_shipped_rules_are_well(local):
    assert local()["rules"]["level"] == "ok"
    assert " rules of version " in local()["rules"]["seen"]
    assert "patterns" not in local()


def test_rules_of_ones_own_are_tried(local, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(RULES)
    found = local(f'[classification]\nrules = ["{own}"]')["rules"]
    assert found["level"] == "fail"
    assert "rule own-full: has no example" in found["seen"]
    assert "mailq classify" in found["advice"]


GOOD_RULES = RULES + 'examples = ["552 no room at the inn"]\ncounters = ["552 no room in the spool"]\n'


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("text = 'no room at'\nweight = 1", "rule own-full: is shadowed by rule own-other"),
        ("text = 'no room at'", "rule own-full: contradicts rule own-other"),
        ("text = 'no room nowhere'", "rule own-other: does not fit its example"),
    ],
)
def test_rules_of_ones_own_that_do_not_agree_are_a_failure(local, tmp_path, more, problem):
    own = tmp_path / "own.toml"
    both = 'examples = ["552 no room at the inn"]\ncounters = ["552 no room in the spool"]\nsource = "ours"\n'
    own.write_text(f'{GOOD_RULES}[[rule]]\nid = "own-other"\nclass = 50\n{more}\n{both}')
    found = local(f'[classification]\nrules = ["{own}"]')["rules"]
    assert found["level"] == "fail"
    assert problem in found["seen"]


def test_a_rule_before_a_shipped_one_is_no_mistake(local, tmp_path):
    own = tmp_path / "own.toml"
    everything = 'id = "own-all"\nclass = 50\ncode = "5xx"\nexamples = ["550 5.1.1 no such user"]\n'
    own.write_text(f'version = "1"\n[[rule]]\n{everything}counters = ["450 no such user"]\nsource = "ours"\n')
    assert local(f'[classification]\nrules = ["{own}"]')["rules"]["level"] == "ok"


@pytest.mark.parametrize("content", [None, b"[[rule]]\nid = 3", b"not toml", b"\xff\xfe"])
def test_rules_that_cannot_be_used_are_a_failure(local, tmp_path, content):
    own = tmp_path / "own.toml"
    if content is not None:
        own.write_bytes(content)
    found = local(f'[classification]\nrules = ["{own}"]')["rules"]
    assert found["level"] == "fail"
    assert "classification.rules" in found["advice"]


def test_patterns_are_tried_on_their_examples(local):
    good = '[[patterns]]\nid = "a"\ncontains = "later"\nretry = 60\nexamples = ["451 4.3.0 later"]\n'
    well = local(good + 'counterexamples = ["451 4.3.0 now"]')["patterns"]
    assert (well["level"], well["seen"]) == ("ok", "1 tried")
    ill = local(good + 'counterexamples = ["451 4.3.0 much later"]')["patterns"]
    assert (ill["level"], ill["seen"]) == ("fail", 'patterns.a: matches its counterexample "451 4.3.0 much later"')


PLACES = '[[sources]]\nip = "2001:db8::1"\npool = "bulk"\n'


@pytest.mark.parametrize(
    ("table", "key", "what"),
    [("[[patterns]]\nid = 'a'\nretry = 60\n", "{}s = [{!r}]", "patterns"), ("[[limits]]\n", "{} = {!r}", "limits")],
)
def test_pools_and_sources_that_are_not_there_are_a_failure(local, table, key, what):
    for name, value in (("pool", "bulk"), ("source", "2001:db8:0::1"), ("source", "127.0.0.1")):
        assert local(PLACES + table + key.format(name, value))[what]["level"] == "ok"
    for name, value, reason in (
        ("pool", "blk", 'no address in [[sources]] has the pool "blk"'),
        ("source", "192.0.2.9", "192.0.2.9 is neither in [[sources]] nor an address of this host"),
    ):
        found = local(PLACES + table + key.format(name, value))[what]
        assert found["level"] == "fail"
        assert found["seen"].endswith(reason)


def test_a_pool_that_a_pattern_gives_to_jobs_is_looked_for_too(local):
    pattern = "[[patterns]]\nid = 'a'\nretry = 60\nset_message = {'/pool' = 'blk'}\n"
    assert local(PLACES + pattern)["patterns"]["level"] == "fail"
    assert local(PLACES + pattern.replace("blk", "bulk"))["patterns"]["level"] == "ok"


def test_patterns_are_tried_where_the_rules_cannot_be_used(local):
    pattern = "[[patterns]]\nid = 'a'\ncodes = [450]\nretry = 60\n"
    found = local(f"[classification]\nrules = ['/nonexistent.toml']\n{pattern}")
    assert (found["rules"]["level"], found["patterns"]["level"]) == ("fail", "fail")


def test_of_many_problems_the_table_tells_some_and_the_number_of_the_others(local, capsys):
    found = local("".join(f'[[patterns]]\nid = "p{n}"\ncontains = "x"\nretry = 60\n' for n in range(5)))["patterns"]
    assert len(found["seen"].splitlines()) == 10
    _print([Finding(Level(found["level"]), found["what"], found["seen"])])
    shown = capsys.readouterr().out
    assert shown.count("add a reply") == 5
    assert "and 5 more, which --json tells" in shown


async def test_a_dead_rule_ends_the_program_with_status_1(command, write, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(RULES)
    status, out = await command("--json", "--domain", "a.test", file=write(f'[classification]\nrules = ["{own}"]'))
    assert status == 1
    assert [finding["what"] for finding in json.loads(out) if finding["level"] == "fail"] == ["rules"]


NAMES = {
    "crm.example.com": ["8.8.8.8"],
    "inside.example.com": ["10.0.0.9"],
    "both.example.com": ["10.0.0.9", "8.8.8.8"],
}
SECRETS = '\nsecrets = ["0123456789abcdef"]'


@pytest.fixture
def names(monkeypatch):
    """Have `NAMES` looked up by the system; numbers are read as ever, and other names lead nowhere."""
    really = socket.getaddrinfo

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - as there
        if host not in NAMES:
            return really(host, port, family, type, proto, socket.AI_NUMERICHOST)
        return [info for ip in NAMES[host] for info in really(ip, port, family, type, proto, socket.AI_NUMERICHOST)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("keys", "level", "seen"),
    [
        (f'url = "https://crm.example.com/k3y"{SECRETS}', "ok", "signed, encrypted"),
        ('url = "https://crm.example.com/k3y"', "warn", "not signed"),
        (f'url = "http://crm.example.com/k3y"\nallow_http = true{SECRETS}', "warn", "without TLS"),
        (f'url = "https://8.8.8.8/k3y"{SECRETS}', "ok", "signed"),
        (f'url = "https://127.0.0.1:8443/k3y"{SECRETS}', "fail", "127.0.0.1 is not a public"),
        (f'url = "https://[fd00::1]/k3y"{SECRETS}', "fail", "fd00::1 is not a public"),
        (f'url = "https://[::ffff:10.0.0.1]/k3y"{SECRETS}', "fail", "is not a public"),
        (f'url = "https://localhost/k3y"{SECRETS}', "fail", "localhost is not a public"),
        (f'url = "https://LocalHost./k3y"{SECRETS}', "fail", "localhost. is not a public"),
        (f'url = "https://a.localhost./k3y"{SECRETS}', "fail", "a.localhost. is not a public"),
        (f'url = "https://0x7f.1/k3y"{SECRETS}', "fail", "0x7f.1 is not a public address: 127.0.0.1"),
        (f'url = "https://2130706433/k3y"{SECRETS}', "fail", "2130706433 is not a public address: 127.0.0.1"),
        (f'url = "https://inside.example.com/k3y"{SECRETS}', "fail", "is not a public address: 10.0.0.9"),
        (f'url = "https://both.example.com/k3y"{SECRETS}', "ok", "signed"),
        (f'url = "https://gone.example.com/k3y"{SECRETS}', "warn", "gone.example.com cannot be looked up: "),
        (f'url = "https://a..b/k3y"{SECRETS}', "warn", "a..b cannot be looked up: "),
        (f'url = "https://10.0.0.1/k3y"\nallow_private = true{SECRETS}', "ok", "signed"),
    ],
)
@pytest.mark.usefixtures("names")
async def test_endpoints_of_webhooks(tmp_path, keys, level, seen):
    file = tmp_path / "mailq.toml"
    file.write_text(f"[webhooks.endpoints.crm]\n{keys}")
    (finding,) = await webhooks(load(file, {}))
    found = finding.as_json()
    assert found["what"] == "webhook crm"
    assert found["level"] == level
    assert seen in found["seen"]
    assert ("advice" in found) is (level != "ok")
    assert "k3y" not in json.dumps(found)
    assert "0123456789abcdef" not in json.dumps(found)


def test_secrets_of_webhooks_are_for_nobody_else(tmp_path):
    file = tmp_path / "mailq.toml"
    endpoint = '[webhooks.endpoints.crm]\nurl = "https://a.example/"\n'
    for more, level in (("", "ok"), ('secrets = ["0123456789abcdef"]', "warn"), ('headers = {X = "y"}', "warn")):
        file.write_text(endpoint + more)
        file.chmod(0o644)
        (found,) = check_local.configuration(file)
        assert found.level == level


DISK = "/dev/sda1 / ext4 rw 0 0\n"


def test_a_journal_that_can_be_kept_and_nothing_is_made(local, tmp_path):
    found = local("[journal]\nsize = 262144\n[worker]\nsessions = 3\nprocesses = 1", DISK)["journal"]
    assert found == {"level": "ok", "what": "journal", "seen": f"{tmp_path}/new/journal: 0 MiB a file"}
    assert not (tmp_path / "new").exists()


@pytest.fixture
def place():
    """Return a directory that every user of the machine may write, as a journal's directory may be."""
    with tempfile.TemporaryDirectory(prefix="mailq-test-") as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


AS_A_USER = """
import os, sys
from mailq.cli.check_local import journal
from mailq.config import Config
from mailq.edges.journal import FileJournal
from mailq.edges.limits import SharedLimits
os.getuid() or os.setuid(65534)
config = Config.model_validate({"worker": {"journal_dir": sys.argv[1], "processes": 1}, "journal": {"size": 262144}})
found = journal(config, "/dev/sda1 / ext4 rw 0 0")
worker = SharedLimits(sys.argv[1]).problem() or FileJournal(sys.argv[1], config.journal, 0).problem() or ""
print(found.level, found.seen, found.advice, worker, sep="|")
"""


@pytest.mark.parametrize("name", ["limits", "1-2.journal", ""])
def test_a_journal_whose_files_are_another_users_is_refused_as_the_worker_does(place, name):
    if name:
        (place / name).touch(0o000)
    command = [sys.executable, "-c", AS_A_USER, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    level, seen, advice, worker = done.stdout.rstrip("\n").split("|")
    if not name:
        assert (level, worker) == ("warn", "")  # of its size
        return
    assert level == "fail"
    assert str(place / name) in seen
    assert worker.lower() == f"{seen}; {advice}".rstrip(".").lower()


def test_no_journal_at_all(local):
    found = local(MAILQ_WORKER__JOURNAL_DIR="")["journal"]
    assert (found["level"], found["seen"]) == ("warn", "none is kept")


def test_a_journal_where_something_else_is(local, tmp_path):
    (tmp_path / "new").write_text("a file")
    found = local(mounts=DISK)["journal"]
    assert (found["level"], found["seen"]) == ("fail", f"{tmp_path}/new is no directory")


def test_a_journal_where_nobody_may_write(local):
    found = local(mounts=DISK, MAILQ_WORKER__JOURNAL_DIR="/proc/mailq")["journal"]
    assert found["level"] == "fail"  # nobody may write there; for root there is no room
    assert found["seen"].startswith("/proc")


@pytest.mark.parametrize(
    ("mounts", "level", "words"),
    [
        ("srv:/x {there} nfs4 rw 0 0\n", "fail", "network file system (nfs4)"),
        ("srv:/x {there} cifs rw 0 0\n/dev/sdb {there}/new ext4 rw 0 0\n", "fail", "network file system (cifs)"),
        ("srv:/x {there}x nfs4 rw 0 0\n", "ok", "MiB a file"),
        ("srv:/x {there} nfs4 rw 0 0\n/dev/sdb {there} xfs rw 0 0\n", "ok", "MiB a file"),
        ("tmpfs {there} tmpfs rw 0 0\n", "warn", "in memory (tmpfs)"),
        ("odd\n\n", "ok", "MiB a file"),
    ],
)
def test_the_file_system_of_a_journal(local, tmp_path, mounts, level, words):
    mounts = DISK + mounts.format(there=str(tmp_path).replace(" ", "\\040"))
    found = local("[journal]\nsize = 262144\n[worker]\nsessions = 3\nprocesses = 1", mounts)["journal"]
    assert found["level"] == level
    assert words in found["seen"]
    assert ("advice" in found) is (level != "ok")


def test_the_room_of_a_journal(local, tmp_path):
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    size = 1024 * 1024 * 1024
    few, many = free * 3 // (4 * size) + 1, min(free // size + 2, 256)

    for processes, level in ((few, "warn"), (many, "fail")):
        if processes * size > free * 5 // 4 or level == "warn":
            found = local(f"[journal]\nsize = {size}\n[worker]\nprocesses = {processes}", DISK)["journal"]
            assert found["level"] == level
            assert f"{processes} processes want {2 * 1024 * processes} MiB" in found["seen"]


def test_a_journal_that_is_small_for_its_sessions(local):
    found = local("[journal]\nsize = 262144\n[worker]\nsessions = 4\nprocesses = 1", DISK)["journal"]
    assert found["level"] == "warn"
    assert "4 sessions" in found["seen"]


@pytest.fixture
async def relay(tmp_path):
    """A smarthost of which anna is a user, with a certificate of a CA that nobody knows."""
    context = Authority.create(tmp_path).issue("127.0.0.1").context()
    async with Sink(tls=context, users={"anna": "geheim"}) as sink:
        yield sink


def through(relay, **keys):
    lines = {"hostname": "127.0.0.1", "port": relay.port, "username": "anna", "password": "geheim", **keys}
    return "[smarthost]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


async def test_the_smarthost_is_logged_in_at(check, relay):
    _, seen = await check(text=through(relay))

    found = seen[f"smarthost 127.0.0.1:{relay.port}"]
    assert found["level"] == "ok"
    assert found["seen"].startswith("TLSv1.3, certificate not verified (")
    assert found["seen"].endswith("logged in as anna by PLAIN")
    assert not relay.messages


@pytest.mark.parametrize(
    ("keys", "seen", "advice"),
    [
        ({"password": "falsch"}, "535 5.7.8", "Look at smarthost.username and smarthost.password"),
        ({"verify": "always"}, "starttls: 454 4.7.5", "No password is sent before this is set right"),
        ({"port": 9}, "connect: 451 4.4.1", "Look at smarthost.hostname and smarthost.port"),
    ],
)
async def test_a_smarthost_that_lets_nobody_in(keys, seen, advice, check, relay):
    status, found = await check(text=through(relay, **keys))

    finding = found[f"smarthost 127.0.0.1:{keys.get('port', relay.port)}"]
    assert (status, finding["level"]) == (1, "fail")
    assert seen in finding["seen"]
    assert finding["advice"].startswith(advice)
    assert "falsch" not in str(found)
