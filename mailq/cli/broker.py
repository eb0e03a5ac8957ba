"""What send and watch have in common: a connection to the configured broker, and one line when there is none."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import typer

from mailq.cli.output import complain
from mailq.config.rabbitmq import RabbitConfig
from mailq.edges.amqp import topology
from mailq.edges.amqp.address import Address
from mailq.edges.amqp.connection import Connection, RefusedError
from mailq.ports.broker import BrokerError

EX_UNAVAILABLE = 69
"""Exit status when the broker cannot be reached or lacks a queue (sysexits.h)."""


def unavailable(trouble: BrokerError) -> typer.Exit:
    """Tell what is wrong with the broker and return the exit to be raised."""
    complain(str(trouble))
    return typer.Exit(EX_UNAVAILABLE)


@asynccontextmanager
async def connection(config: RabbitConfig, role: str, queue: str) -> AsyncIterator[Connection]:
    """Give a connection to a broker that has `queue`.

    Raises:
        BrokerError: no connection, no login, or no such queue.
    """
    address = Address.of(config)
    opened = await Connection.open(
        address,
        f"mailq {os.getpid()} {role}",
        heartbeat=config.heartbeat,
        connect_timeout=config.connect_timeout,
        answer_timeout=config.confirm_timeout,
    )
    try:
        try:
            await topology.count(opened, queue)
        except RefusedError as refused:
            if refused.code != topology.NOT_FOUND:
                raise
            raise BrokerError(
                f"there is no queue {queue!r} at RabbitMQ {address}; `mailq run` declares those it is configured with"
            ) from None
        yield opened
    finally:
        await opened.close()
