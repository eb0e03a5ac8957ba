"""Every way to lose or never get the broker: noticed, explained, and without the password."""

import asyncio
import ssl
import traceback

import pytest
from pydantic import SecretStr
from support.broker import Inbox, until
from support.proxy import Proxy

from mailq.config.rabbitmq import RabbitConfig
from mailq.core.broker.messages import Publication
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.broker import Broker
from mailq.ports.broker import BrokerError
from mailq.testbed.free_port import free_port

SECRET = "s3cr3t/with:odd@signs"


@pytest.fixture
async def proxy(rabbit):
    async with Proxy("127.0.0.1", rabbit.server.port) as proxy:
        yield proxy


async def refused(rabbit, observer, **overrides):
    """Return why a broker cannot be opened, having looked for the password in all that is shown."""
    with pytest.raises(BrokerError) as caught:
        await Broker.open(rabbit.config(**{"connect_timeout": 3} | overrides), 10, observer)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    assert "s3cr3t" not in shown
    return str(caught.value)


async def closed(broker, seconds=20):
    async with asyncio.timeout(seconds):
        return str(await broker.closed())


async def test_wrong_password(rabbit, observer):
    url = rabbit.url_at(rabbit.server.port, login="guest:s3cr3t")
    reason = await refused(rabbit, observer, url=url)
    assert "403 ACCESS_REFUSED - Login was refused" in reason
    assert "user 'guest'" in reason


async def test_missing_virtual_host(rabbit, observer):
    reason = await refused(rabbit, observer, url=f"amqp://127.0.0.1:{rabbit.server.port}/a%2Fb")
    assert "530" in reason
    assert "a/b" in reason


async def test_nobody_listens(rabbit, observer):
    port = free_port()
    reason = await refused(rabbit, observer, url=rabbit.url_at(port, login="guest:s3cr3t"))
    assert f"cannot connect to RabbitMQ at 127.0.0.1:{port}" in reason


async def test_unknown_host_name(rabbit, observer):
    reason = await refused(rabbit, observer, url="amqp://guest:s3cr3t@no-such-host.invalid/")
    assert "host name 'no-such-host.invalid' cannot be resolved" in reason


async def test_a_url_with_parameters_or_a_broken_port(rabbit, observer):
    assert "takes no parameters" in await refused(rabbit, observer, url="amqp://guest:s3cr3t@127.0.0.1/?heartbeat=1")
    broken = RabbitConfig.model_construct(url=SecretStr("amqp://guest:s3cr3t/x@127.0.0.1/"))
    with pytest.raises(BrokerError, match="amqp://user:password@host") as caught:
        Address.of(broken)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


async def test_a_server_that_says_nothing(rabbit, observer, proxy):
    proxy.stall()
    reason = await refused(rabbit, observer, url=rabbit.url_at(proxy.port), connect_timeout=0.5)
    assert f"no AMQP connection to 127.0.0.1:{proxy.port} within 0.5 s" in reason


async def test_a_server_that_hangs_up(rabbit, observer, proxy):
    proxy.refuse()
    assert "lost" in await refused(rabbit, observer, url=rabbit.url_at(proxy.port))


@pytest.mark.parametrize(
    "greeting", [b"220 mail.example ESMTP\r\n", b"AMQP\x00\x01\x00\x00", b"\x01\x00\x00\x7f\xff\xff\xff "]
)
async def test_a_server_of_another_kind(rabbit, observer, greeting):
    async def speak(reader, writer):
        writer.write(greeting)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        assert "does not speak AMQP 0-9-1" in await refused(rabbit, observer, url=f"amqp://127.0.0.1:{port}")


async def test_the_second_address_of_a_host_is_tried(rabbit, observer, monkeypatch):
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def two(host, port, **more):
        if host != "rabbit.example":
            return await real(host, port, **more)
        return [*await real("127.0.0.1", free_port(), **more), *await real("127.0.0.1", port, **more)]

    monkeypatch.setattr(loop, "getaddrinfo", two)
    url = rabbit.url_at(rabbit.server.port, host="rabbit.example")
    broker = await Broker.open(rabbit.config(url=url), 10, observer)
    assert await broker.depth() == 0
    await broker.close()


async def test_tls_with_the_right_authority(rabbit, rabbit_tls, observer):
    url = rabbit.url_at(rabbit_tls.port, scheme="amqps", host="localhost")
    broker = await Broker.open(rabbit.config(url=url, ca_file=str(rabbit_tls.ca_file)), 10, observer)
    inbox, body = Inbox(), b"x" * 1_000_000
    await broker.consume(inbox)
    await broker.publish([Publication("", "outbox", body)])
    assert (await inbox.wait(1))[0].body == body
    await broker.close()


async def test_tls_with_an_unknown_authority(rabbit, rabbit_tls, observer):
    url = rabbit.url_at(rabbit_tls.port, scheme="amqps", login="guest:s3cr3t", host="localhost")
    reason = await refused(rabbit, observer, url=url)
    assert "its certificate is not trusted: self-signed certificate" in reason


def test_a_ca_file_that_went_away():
    gone = RabbitConfig.model_construct(url=SecretStr("amqps://guest:s3cr3t@localhost/"), ca_file="/nowhere/ca.pem")
    with pytest.raises(BrokerError, match=r"rabbitmq.ca_file '/nowhere/ca.pem' cannot be used: No such file"):
        Address.of(gone)


async def test_a_cut_connection_fails_what_is_under_way(open_broker, rabbit, proxy):
    broker = await open_broker(url=rabbit.url_at(proxy.port))
    await broker.consume(Inbox())
    proxy.stall()
    under_way = [asyncio.create_task(broker.publish([Publication("", "results", b"1")])) for _ in range(50)]
    await asyncio.sleep(0)
    proxy.cut()
    outcomes = await asyncio.gather(*under_way, return_exceptions=True)
    assert all(isinstance(outcome, BrokerError) and "lost" in str(outcome) for outcome in outcomes)
    assert "lost" in await closed(broker)
    with pytest.raises(BrokerError):
        await broker.publish([Publication("", "results", b"1")])
    with pytest.raises(BrokerError):
        await broker.ensure_queue("new")
    assert await broker.depth() is None


async def test_a_connection_closed_by_the_operator(open_broker, rabbit):
    broker = await open_broker()
    await asyncio.to_thread(rabbit.server.ctl, "close_all_connections", "--vhost", rabbit.vhost, "maintenance")
    assert "320 CONNECTION_FORCED - maintenance" in await closed(broker)


async def test_silence_is_noticed_by_the_heartbeat(open_broker, rabbit, proxy):
    broker = await open_broker(url=rabbit.url_at(proxy.port), heartbeat=1)
    await broker.consume(Inbox())
    proxy.stall()
    started = asyncio.get_running_loop().time()
    assert "no sign of life from RabbitMQ" in await closed(broker, 5)
    assert asyncio.get_running_loop().time() - started > 1


async def test_an_idle_connection_lives_on_heartbeats(open_broker, rabbit, proxy):
    """The server hears us too, or it would have hung up within two seconds."""
    broker = await open_broker(url=rabbit.url_at(proxy.port), heartbeat=1)
    with pytest.raises(TimeoutError):
        await closed(broker, 4)
    assert await broker.depth() == 0


async def test_an_owed_confirm_counts_as_lost(open_broker, rabbit, proxy):
    broker = await open_broker(url=rabbit.url_at(proxy.port), confirm_timeout=0.5, heartbeat=0)
    await broker.publish([Publication("", "results", b"1")])
    proxy.stall()
    with pytest.raises(BrokerError, match=r"owes a publisher confirm for 0.5 s"):
        await broker.publish([Publication("", "results", b"2")])
    assert "owes" in await closed(broker)


async def test_a_slow_network_is_no_loss(open_broker, rabbit, proxy):
    broker, inbox = await open_broker(url=rabbit.url_at(proxy.port), heartbeat=1), Inbox()
    await broker.consume(inbox)
    proxy.delay(0.3)
    await asyncio.gather(*(broker.publish([Publication("", "outbox", b"%d" % n)]) for n in range(100)))
    await inbox.wait(100)


async def test_open_jobs_of_a_lost_broker_come_back(open_broker, rabbit, proxy):
    broker, inbox = await open_broker(url=rabbit.url_at(proxy.port)), Inbox()
    for n in range(20):
        await rabbit.publish("outbox", b"%d" % n)
    await broker.consume(inbox)
    await inbox.wait(20)
    proxy.cut()
    await closed(broker)
    again, rest = await open_broker(), Inbox()
    await again.consume(rest)
    assert sorted(int(message.body) for message in await rest.wait(20)) == list(range(20))


async def test_fail_and_close_are_safe_to_repeat(open_broker):
    broker = await open_broker()
    broker.fail(BrokerError("first"))
    broker.fail(BrokerError("second"))
    assert await closed(broker) == "first"
    await broker.close()
    await broker.close()
    assert await closed(broker) == "first"


async def test_a_closed_broker_leaves_nothing_behind(rabbit, observer, proxy):
    broker = await Broker.open(rabbit.config(url=rabbit.url_at(proxy.port)), 10, observer)
    assert proxy.connections == 3
    await broker.close()
    assert await closed(broker) == "closed by mailq"
    await until(lambda: proxy.connections == 0)


async def test_a_failed_opening_leaves_nothing_behind(rabbit, observer, proxy):
    await rabbit.declare("outbox", arguments={"x-queue-type": "stream"})
    await refused(rabbit, observer, url=rabbit.url_at(proxy.port))
    assert proxy.accepted == 1
    await until(lambda: proxy.connections == 0)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ("h", 5672, "guest", "guest", "/", False)),
        ("amqp://h/", ("h", 5672, "guest", "guest", "/", False)),
        ("amqps://u:p@h:1/%2f", ("h", 1, "u", "p", "/", True)),
        ("amqps://u%40x:s3cr3t%2Fwith%3Aodd%40signs@[::1]/a%2Fb", ("::1", 5671, "u@x", SECRET, "a/b", True)),
    ],
)
def test_the_url_is_taken_apart(url, expected):
    address = Address.of(RabbitConfig(url=url))
    tls = isinstance(address.tls, ssl.SSLContext)
    assert (address.host, address.port, address.user, address.password, address.vhost, tls) == expected
    assert SECRET not in f"{address!r} {address}"
