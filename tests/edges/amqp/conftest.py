"""Brokers for the tests in this folder, closed in the end."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.broker import Remembering
from support.rabbitmq import Rabbit

from mailq.edges.amqp.broker import Broker


@pytest.fixture
def observer() -> Remembering:
    return Remembering()


@pytest.fixture
async def open_broker(rabbit: Rabbit, observer: Remembering) -> AsyncIterator[Callable[..., Any]]:
    opened: list[Broker] = []

    async def open_one(prefetch: int = 500, **overrides: Any) -> Broker:
        broker = await Broker.open(rabbit.config(**overrides), prefetch, observer)
        opened.append(broker)
        return broker

    yield open_one
    for broker in opened:
        await broker.close()
