"""The HTTP port of a worker or of a supervisor: metrics for Prometheus, health and readiness for whoever runs it.

aiohttp's low-level server with a table of four pages; nothing here changes anything, so only GET
and HEAD are answered. What is healthy, ready or measured is decided by the functions given, which may take
their time. No answer names a library or a version, not even to a malformed request. There is no login and no
TLS: the default address is loopback, and who opens it puts a proxy in front.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from mailq.config.operations import HttpConfig

Check = Callable[[], str | None] | Callable[[], Awaitable[str | None]]
"""Returns None when all is well, else the reason why not, in one clause."""

Page = Callable[[], tuple[str, bytes]] | Callable[[], Awaitable[tuple[str, bytes]]]
"""Returns a content type and a body."""

INDEX = """mailq
/metrics  figures for Prometheus
/healthz  200 while the process works
/readyz   200 while jobs are consumed
"""

KEEPALIVE = 15
"""Seconds that an idle connection is kept open."""

_TEXT = "text/plain; charset=utf-8"
_HEADERS = {"Server": "mailq", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class ListenError(Exception):
    """The configured address cannot be listened on; the text names the key to change."""


class HttpServer:
    """Serves the pages inside `async with`; `port` is the real one.

    `metrics` gives the page /metrics; `alive` decides /healthz, `ready` decides /readyz.
    """

    def __init__(self, config: HttpConfig, *, metrics: Page, alive: Check, ready: Check) -> None:
        self._config = config
        self._metrics = metrics
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._runner: web.ServerRunner | None = None

    @property
    def port(self) -> int:
        """The port listened on, also where the configured one is 0."""
        assert self._runner is not None, "not started"
        port: int = self._runner.addresses[0][1]
        return port

    async def __aenter__(self) -> Self:
        """Start to listen.

        Raises:
            ListenError: the address cannot be had.
        """
        runner = web.ServerRunner(_Server(self._answer), handle_signals=False, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, self._config.host, self._config.port)
        try:
            await site.start()
        except OSError as trouble:
            await runner.cleanup()
            raise ListenError(_explain(self._config, trouble)) from trouble
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop listening and close what is open, within a second or so."""
        assert self._runner is not None, "not started"
        await self._runner.cleanup()
        self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.path not in ("/", "/metrics", *self._checks):
            return _text(404, "no such page; / lists them\n")
        if request.method not in ("GET", "HEAD"):
            response = _text(405, "only GET and HEAD\n")
            response.headers["Allow"] = "GET, HEAD"
            return response
        if request.path == "/":
            return _text(200, INDEX)
        if request.path == "/metrics":
            page = self._metrics()
            content_type, body = page if isinstance(page, tuple) else await page
            return web.Response(body=body, headers={**_HEADERS, "Content-Type": content_type})
        reason = self._checks[request.path]()
        if not isinstance(reason, str | None):
            reason = await reason
        return _text(200, "ok\n") if reason is None else _text(503, f"{reason}\n")


class _Connection(web.RequestHandler):
    """aiohttp's protocol, whose own answers to bad requests would name its version."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - quotes the peer's request
    ) -> web.StreamResponse:
        """Return a bare error; an unforeseen one (500) is also logged."""
        if status >= 500:
            self.log_exception("error while answering %s", request.path, exc_info=exc)
        response = _text(status, "internal error\n" if status >= 500 else "bad request\n")
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        """Return the protocol of one new connection."""
        loop = asyncio.get_running_loop()
        # aiohttp takes None for no access log, its annotation does not say so
        return _Connection(self, loop=loop, access_log=None, keepalive_timeout=KEEPALIVE)  # type: ignore[arg-type]


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=text.encode(), headers={**_HEADERS, "Content-Type": _TEXT})


def _explain(config: HttpConfig, trouble: OSError) -> str:
    where = f"cannot listen on {config.host}:{config.port}"
    match trouble.errno:
        case errno.EADDRINUSE:
            return f"http.port: {where}: the port is in use; choose another, or 0 for a free one"
        case errno.EACCES:
            return f"http.port: {where}: ports below 1024 are not for normal users; choose another"
        case _:
            reason = trouble.strerror or trouble
            return f"http.host: {where}: {reason}; choose an address of this host, or set http.enabled = false"
