"""Posting events to an endpoint over HTTP, with aiohttp.

Whom a request reaches is decided at the last moment: of every socket that is about to be connected the
very address is checked, so that neither a name that changes its mind (DNS rebinding) nor a redirect nor an
address in the URL gets anywhere that is not public, unless the endpoint may. No proxy of the
environment, no cookies, no decompression; answers are read up to a limit and thrown away. What an
answer means is decided in `core.webhooks.endpoint`. No text from here holds the URL, which may hold a secret.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from mailq import __version__
from mailq.config.webhooks import EndpointConfig
from mailq.core.networks import carried
from mailq.core.smtp.reply import printable
from mailq.core.webhooks.endpoint import LONGEST_REST, Answer, emailengine_signature, signature

MAX_ANSWER = 64 * 1024
"""Octets of an answer that are read so that the connection can be used again."""

MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


_STAND_INS = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16")))
"""Networks whose addresses are nothing but another way to IPv4: mapped, NAT64, 6to4."""


class ForbiddenAddressError(OSError):
    """The endpoint's name leads to an address that is not public."""


def public(address: str) -> bool:
    """Tell whether an IP address is one of the public Internet, whichever way it is written inside IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = carried(ip)
    stands_for_another = bool(inner) and any(ip in network for network in _STAND_INS)
    return all(_public(each) for each in inner) and (stands_for_another or _public(ip))


def _public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


async def addresses(url: str) -> list[str]:
    """Return the addresses that a request to this URL goes to, as the client finds them; `public` judges each.

    Raises:
        OSError: the host cannot be looked up.
        ValueError: the host is no name.
    """
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    if f".{host}".rstrip(".").endswith(".localhost"):
        return ["127.0.0.1"]  # whatever the DNS says (RFC 6761 section 6.3)
    resolver = aiohttp.DefaultResolver()
    try:
        return [found["host"] for found in await resolver.resolve(host, family=socket.AF_UNSPEC)]
    finally:
        await resolver.close()


class Poster:
    """Posts to one endpoint inside `async with`; connections are kept, `concurrency` of them at most."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._url = config.url.get_secret_value()
        self._secrets = [secret.get_secret_value().encode() for secret in config.secrets]
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Be ready to post."""
        connector = aiohttp.TCPConnector(
            limit=self._config.concurrency,
            ttl_dns_cache=30,
            ssl=ssl.create_default_context(),
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": f"mailq/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        assert self._session is not None, "not entered"
        await self._session.close()

    async def __call__(self, body: bytes, name: str, event: str | None) -> Answer:
        """Post a body, signed now; `event` is the event's identity where the body is a single one.

        All redirects together have the endpoint's `timeout`. Raises nothing that a client can foresee.
        """
        headers = {"Content-Type": "application/json", "X-Mailq-Event": name}
        if event is not None:
            headers["Idempotency-Key"] = event
        if self._secrets:
            headers["X-Mailq-Signature"] = signature(self._secrets, int(time.time()), body)
        if self._config.emailengine_signature:
            headers["X-EE-Wh-Signature"] = emailengine_signature(self._secrets[0], body)
        try:
            async with asyncio.timeout(self._config.timeout):
                return await self._post(body, headers)
        except TimeoutError:
            return Answer(None, f"no answer within {self._config.timeout:g} s")
        except (aiohttp.ClientError, OSError) as trouble:
            return Answer(None, _words(trouble))

    async def _post(self, body: bytes, headers: dict[str, str]) -> Answer:
        assert self._session is not None, "not entered"
        url, own = self._url, {name: value.get_secret_value() for name, value in self._config.headers.items()}
        for _ in range(MAX_REDIRECTS + 1):
            request = self._session.post(url, data=body, headers={**own, **headers}, allow_redirects=False)
            async with request as response:
                await _read(response)
                if response.status not in _REDIRECTS or not self._config.follow_redirects:
                    return _answer(response)
                try:
                    target = urljoin(url, response.headers.get("Location", ""))
                    here, there = urlsplit(url), urlsplit(target)
                except ValueError:
                    return Answer(None, "redirected to what is no URL")
            if there.scheme != "https" and (there.scheme != "http" or here.scheme == "https"):
                return Answer(None, f"redirected from {here.scheme} to {printable(there.scheme.encode(), 20)!r}")
            if (there.scheme, there.netloc) != (here.scheme, here.netloc):
                own = {}  # what is meant for one server is no business of another
            url = target
        return Answer(None, f"more than {MAX_REDIRECTS} redirects")

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Return the socket for an address that is connected to next."""
        family, kind, protocol, _, address = info
        if not self._config.allow_private and not public(address[0]):
            raise ForbiddenAddressError(f"{address[0]} is not a public address; allow_private = true allows it")
        return socket.socket(family, kind, protocol)


async def _read(response: aiohttp.ClientResponse) -> None:
    """Read an answer to its end, if that is near."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER:
            response.close()
            return


def _answer(response: aiohttp.ClientResponse) -> Answer:
    text = printable((response.reason or "").encode("utf-8", "replace"))
    if response.status in _REDIRECTS:
        text = f"{text} (redirects are not followed)"
    return Answer(response.status, text, retry_after(response.headers.getall("Retry-After", ())))


def retry_after(values: Sequence[str]) -> float | None:
    """Return the seconds that a Retry-After asks for (RFC 9110 section 10.2.3), None if it makes no sense.

    The answer is a stranger's: of a date the parser raises whatever it likes, and huge numbers are cut.
    """
    if not values:
        return None
    text = values[0].strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:10]), LONGEST_REST)
    try:
        moment = parsedate_to_datetime(text)
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except Exception:  # noqa: BLE001 - OverflowError, IndexError, ValueError: a date that is none is no hint
        return None
    return min(max(seconds, 0.0), LONGEST_REST)


def _words(trouble: Exception) -> str:
    """Return what went wrong, without the URL."""
    cause = trouble.os_error if isinstance(trouble, aiohttp.ClientConnectorError) else trouble
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        cause = cause.certificate_error
    if isinstance(cause, aiohttp.ClientResponseError):
        return printable(f"no HTTP answer: {cause.message}".encode("utf-8", "replace"))
    text = str(cause) if isinstance(cause, OSError) else type(cause).__name__
    return printable(text.encode("utf-8", "replace"))
