"""The HTTP port, asked by a real client."""

import asyncio
import socket

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mailq.config.operations import HttpConfig
from mailq.edges.http_server import HttpServer, ListenError
from mailq.edges.metrics import Metrics

ANY = HttpConfig(port=0)


class World:
    """What the server asks: a test changes the answers."""

    def __init__(self):
        self.metrics = Metrics()
        self.dead = None
        self.unready = None

    def server(self, config=ANY):
        return HttpServer(config, metrics=self.metrics.page, alive=lambda: self.dead, ready=lambda: self.unready)


@pytest.fixture
def world():
    return World()


async def ask(server, path, method="GET"):
    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as client, client.request(method, url) as answer:
        return answer.status, await answer.text(), answer.headers


async def raw(server, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_metrics_are_served_as_they_stand(world):
    async with world.server() as server:
        world.metrics.poisoned("x")
        status, text, headers = await ask(server, "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert families["mailq_poisoned"].samples[0].value == 1


async def test_health_and_readiness_follow_what_is_asked(world):
    async with world.server() as server:
        assert (await ask(server, "/healthz"))[:2] == (200, "ok\n")
        assert (await ask(server, "/readyz"))[:2] == (200, "ok\n")
        world.unready = "broker: connection refused"
        assert (await ask(server, "/readyz"))[:2] == (503, "broker: connection refused\n")
        assert (await ask(server, "/healthz"))[:2] == (200, "ok\n")
        world.dead = "worker 2 does not answer"
        assert (await ask(server, "/healthz"))[:2] == (503, "worker 2 does not answer\n")


async def test_the_index_names_pages_that_exist(world):
    async with world.server() as server:
        status, text, _ = await ask(server, "/")
        paths = [line.split()[0] for line in text.splitlines() if line.startswith("/")]

        assert status == 200
        assert paths == ["/metrics", "/healthz", "/readyz"]
        assert [(await ask(server, path))[0] for path in paths] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "//metrics", "/%2e%2e/etc/passwd", "/healthz/x"])
async def test_other_pages_do_not_exist(world, path):
    async with world.server() as server:
        assert (await ask(server, path))[0] == 404


async def test_a_query_does_not_matter(world):
    async with world.server() as server:
        assert (await ask(server, "/healthz?verbose=1"))[0] == 200


async def test_head_has_no_body(world):
    async with world.server() as server:
        status, text, headers = await ask(server, "/metrics", "HEAD")

    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_nothing_can_be_changed(world, method):
    async with world.server() as server:
        status, _, headers = await ask(server, "/healthz", method)

    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00 what is this\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=["good", "missing", "garbage", "bad header", "long header"],
)
async def test_no_answer_names_a_version(world, request_):
    async with world.server() as server:
        answer = await raw(server, request_)

    assert answer.startswith(b"HTTP/1.")
    assert b"\r\nServer: mailq\r\n" in answer
    assert b"aiohttp" not in answer.lower()
    assert b"python" not in answer.lower()


async def test_a_malformed_request_leaves_the_server_well(world):
    async with world.server() as server:
        assert b" 400 " in (await raw(server, b"nonsense\r\n\r\n")).splitlines()[0]
        assert (await ask(server, "/healthz"))[0] == 200


async def test_a_check_that_breaks_is_an_error_without_details(world):
    def broken():
        raise ValueError("amqp://guest:secret@broker/")

    async with HttpServer(ANY, metrics=world.metrics.page, alive=broken, ready=broken) as server:
        status, text, headers = await ask(server, "/readyz")

        assert (status, text) == (500, "internal error\n")
        assert headers["Server"] == "mailq"
        assert (await ask(server, "/metrics"))[0] == 200


async def test_a_port_in_use_is_one_clear_error(world):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ListenError, match=rf"^http\.port: cannot listen on 127\.0\.0\.1:{port}: the port is in use"
        ):
            await world.server(HttpConfig(port=port)).__aenter__()


async def test_a_foreign_address_is_one_clear_error(world):
    with pytest.raises(ListenError, match=r"^http\.host: cannot listen on 192\.0\.2\.1:0: "):
        await world.server(HttpConfig(host="192.0.2.1", port=0)).__aenter__()


async def test_the_port_is_free_again_afterwards(world):
    async with world.server() as server:
        port = server.port
        await ask(server, "/healthz")

    async with world.server(HttpConfig(port=port)) as server:
        assert server.port == port
        assert (await ask(server, "/healthz"))[0] == 200


async def test_it_stops_in_time_though_a_client_stays_connected(world):
    async with asyncio.timeout(5):
        async with world.server() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /metr")
        assert await reader.read() == b""
    writer.close()


async def test_answers_may_take_their_time(world):
    async def metrics():
        await asyncio.sleep(0)
        return world.metrics.page()

    async def check():
        await asyncio.sleep(0)
        return world.dead

    async with HttpServer(ANY, metrics=metrics, alive=check, ready=check) as server:
        assert (await ask(server, "/metrics"))[0] == 200
        assert (await ask(server, "/healthz"))[:2] == (200, "ok\n")
        world.dead = "process 2: does not answer"
        assert (await ask(server, "/readyz"))[:2] == (503, "process 2: does not answer\n")
