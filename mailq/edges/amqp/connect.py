"""The way to a broker: its addresses one after the other, until one takes a connection, with TLS if so configured."""

import asyncio
import socket
from typing import Any

from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connect_errors import unknown_host, unreachable


async def reach(address: Address, protocol: asyncio.Protocol, seconds: float) -> None:
    """Put the protocol on a connection to the first address that answers; each has an equal share of the time left.

    Raises:
        UnreachableError: the name has no address, or none of them took the connection.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise unknown_host(address.host, error) from None
    trouble = OSError("it has no address")
    for index, (family, _, _, _, where) in enumerate(found):
        try:
            async with asyncio.timeout((ends - loop.time()) / (len(found) - index)):
                await _attach(address, protocol, family, where)
        except OSError as error:  # TimeoutError and ssl.SSLError are two
            trouble = error
        else:
            return
    raise unreachable(address, trouble)


async def _attach(address: Address, protocol: asyncio.Protocol, family: int, where: tuple[Any, ...]) -> None:
    """Connect a socket, then put the protocol on it."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, where)
        name = address.host if address.tls else None
        await loop.create_connection(lambda: protocol, sock=sock, ssl=address.tls, server_hostname=name)
    except BaseException:
        sock.close()
        raise
