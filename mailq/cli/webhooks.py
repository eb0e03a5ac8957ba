"""`mailq webhooks`: tell endpoints of results, in a process of its own; or send one a sample.

The module composes the flow of `mailq.webhooks` and its edges.
"""

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import orjson
import typer
import uvloop

from mailq.cli.options import EX_CONFIG, ConfigOption, load
from mailq.cli.output import complain, write
from mailq.cli.plain_help import PlainCommand, PlainGroup
from mailq.cli.webhooks_dead import dead
from mailq.config import Config
from mailq.config.operations import HttpConfig
from mailq.core.times import format_time
from mailq.core.webhooks.endpoint import AnswerMeaning, Endpoint
from mailq.core.webhooks.event_facts import Context
from mailq.core.webhooks.events import event_of
from mailq.edges.amqp import webhook_broker as queues
from mailq.edges.amqp.webhook_broker import AmqpWebhookBroker
from mailq.edges.http_server import HttpServer, ListenError
from mailq.edges.log import configure
from mailq.edges.metrics.webhooks import HookMetrics
from mailq.edges.webhook_client import Poster
from mailq.webhooks.endpoint_queue import EndpointQueue, EndpointRules, Post, WebhookObserver
from mailq.webhooks.intake import Intake, IntakeBounds, Webhooks

group = typer.Typer(
    cls=PlainGroup, invoke_without_command=True, rich_markup_mode="rich", pretty_exceptions_enable=False
)
group.command("dead", cls=PlainCommand)(dead)

TestOption = Annotated[
    str | None, typer.Option("--test", metavar="ENDPOINT", help="Send this endpoint one signed sample and end.")
]


@group.callback()
def webhooks(context: typer.Context, config: ConfigOption = None, test: TestOption = None) -> None:
    r"""Post events about results to HTTP endpoints until SIGTERM.

    messageSent, messageDeliveryError and messageFailed, to the tables
    \[webhooks.endpoints.NAME] of the configuration. SIGTERM and SIGINT
    let requests under way end and exit with status 0; SIGHUP changes
    nothing, a new configuration needs a restart. Several processes stand
    by for each other. Needs neither `mailq run` nor its host. Without
    a command it does what `run` does.

    Exit status with --test: 0 if the endpoint takes the sample, else 1.

    [dim]mailq webhooks -c /etc/mailq/mailq.toml
    mailq webhooks --test crm
    mailq webhooks dead list[/dim]
    """
    context.obj = config
    if context.invoked_subcommand is None:
        tell(config, test)


@group.command("run", cls=PlainCommand)
def run_command(context: typer.Context, config: ConfigOption = None, test: TestOption = None) -> None:
    """Post events until SIGTERM, as `mailq webhooks` does without a command."""
    tell(config or context.obj, test)


def tell(config: Path | None, test: str | None) -> None:
    """Send events until SIGTERM, or a sample to the endpoint `test`; ends the program with the exit status."""
    settings = load(config)
    endpoints = settings.webhooks.endpoints
    if test is not None and test not in endpoints:
        known = ", ".join(endpoints) or "none is configured"
        raise typer.BadParameter(f"there is no endpoint {test!r} ({known})", param_hint="--test")
    if not endpoints:
        complain("webhooks.endpoints: none is configured; add a table [webhooks.endpoints.NAME]")
        raise typer.Exit(EX_CONFIG)
    try:
        status = uvloop.run(run(settings) if test is None else sample(settings, test))
    except ListenError as trouble:
        complain(str(trouble).replace("http.port", "webhooks.port", 1))
        status = 1
    raise typer.Exit(status)


async def run(config: Config) -> int:
    """Send events until SIGTERM or SIGINT and return the exit status."""
    names = tuple(config.webhooks.endpoints)
    async with AsyncExitStack() as stack:
        log = stack.enter_context(configure(config.log))
        metrics = HookMetrics(names, log.logger)
        for name, endpoint in config.webhooks.endpoints.items():
            if not endpoint.secrets:
                log.logger.warning("webhook_unsigned", endpoint=name, detail="set secrets to sign its events")
            if endpoint.allow_http or endpoint.allow_private:
                allowed = {"http": endpoint.allow_http, "private": endpoint.allow_private}
                log.logger.warning("webhook_unsafe", endpoint=name, **allowed)
        posts = {
            name: await stack.enter_async_context(Poster(endpoint))
            for name, endpoint in config.webhooks.endpoints.items()
        }
        hooks = build(config, posts, metrics)
        if config.http.enabled:
            where = HttpConfig(host=config.http.host, port=config.webhooks.port)
            server = HttpServer(where, metrics=metrics.page, alive=lambda: None, ready=lambda: hooks.not_ready)
            await stack.enter_async_context(server)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, hooks.stop)
        detail = "mailq webhooks reads its configuration when it starts: restart it"
        loop.add_signal_handler(signal.SIGHUP, partial(log.logger.warning, "reload", change="refused", detail=detail))
        await hooks.run()
    return 0


def build(config: Config, posts: dict[str, Post] | dict[str, Poster], observer: WebhookObserver) -> Webhooks:
    """Return the webhooks with all their edges."""
    table, rabbitmq = config.webhooks, config.rabbitmq
    rules = EndpointRules(table.prefix, table.max_age, table.retries, table.pause, table.pause_max)
    rng = Random()  # noqa: S311 - it spreads retries
    lines: dict[str, EndpointQueue] = {}
    for name, each in table.endpoints.items():
        fields = {"events", "categories", "tags", "concurrency", "batch", "batch_wait"}
        endpoint = Endpoint(name, **each.model_dump(include=fields))
        lines[name] = EndpointQueue(endpoint, rules, posts[name], observer, rng)
    bounds = IntakeBounds(
        reconnect_delay=rabbitmq.reconnect_delay,
        reconnect_max=rabbitmq.reconnect_max,
        drain_timeout=config.worker.drain_timeout,
    )

    async def open_lane(queue: str) -> AmqpWebhookBroker:
        wanted = list(queues.intake_queues(rabbitmq, rules.prefix))
        bound: list[tuple[str, str]] = []
        for name, line in lines.items():
            if queue in (line.queue, rules.prefix):
                wanted += queues.endpoint_queues(rabbitmq, rules.prefix, name, rules.steps)
        if queue == rules.prefix:
            bound = [(queue, pattern) for pattern in queues.OUTCOMES]
        return await AmqpWebhookBroker.open(rabbitmq, queue, wanted, bound)

    return Webhooks(open_lane, Intake(lines, _context(config), rules, observer, bounds), lines, observer, bounds)


async def sample(config: Config, name: str) -> int:
    """Send an endpoint a messageSent that never was, tell what it answers, and return the exit status."""
    now = datetime.now(UTC)
    result = {"state": "message", "result": "accepted", "time": format_time(now), "attempt": 1}
    result |= {"code": 250, "status": "2.0.0", "description": "this is a test"}
    document = {"id": "test", "envelope": "sender@example.com", "recipient": "recipient@example.com"}
    event = event_of({**document, "tags": ["test"], "results": [result]}, None, _context(config), now)
    assert event is not None, "it has a result"
    endpoint = config.webhooks.endpoints[name]
    body = orjson.dumps(event.body if endpoint.batch == 1 else [event.body])
    async with Poster(endpoint) as post:
        answer = await post(body, event.name if endpoint.batch == 1 else "batch", event.id)
    write(f"{name}: {answer}")
    return 0 if answer.meaning is AnswerMeaning.DONE else 1


def _context(config: Config) -> Context:
    table = config.webhooks
    return Context(
        table.service_url,
        table.account,
        config.delivery.max_attempts,
        bool(config.sources),
        table.last_error,
        config.delivery.retries,
        config.delivery.max_deliver_time,
    )
