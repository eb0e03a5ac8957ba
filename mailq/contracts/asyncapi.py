"""The AsyncAPI 3.0 document: what is published where in RabbitMQ, by whom, and who reads it.

Made of what the program itself goes by: the names that the configuration has by default, the queues and bindings that
`edges.amqp.topology` and `edges.amqp.webhook_broker` declare, the steps of `core.answers.schedule`, and the JSON
Schemas in the same folder. An AsyncAPI document describes one application; this one describes the four that meet at
the broker, and tags tell whose operation it is: producer, worker, consumer or webhooks.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import orjson

import mailq
from mailq.config.rabbitmq import RabbitConfig
from mailq.config.webhooks import WebhooksConfig
from mailq.contracts.examples import EXAMPLES
from mailq.core.broker.application_headers import DROPPED, ROUNDS
from mailq.core.broker.provenance import HEADER
from mailq.core.delay_queues import STEPS
from mailq.core.webhooks import endpoint
from mailq.edges.amqp.topology import bindings, delay_queue, queues
from mailq.edges.amqp.webhook_broker import OUTCOMES, endpoint_queues, intake_queues
from mailq.webhooks.endpoint_queue import EndpointRules

Object = dict[str, Any]

BINDING_VERSION = "0.3.0"

_INFO = """\
mailq delivers mail. A producer publishes a job to the outbox, as JSON; the worker delivers it by SMTP, appends what \
happened to the job's `results`, and publishes it once to a topic exchange, whose bindings fan it out to the result \
queues; or it lets the job wait in a delay queue until the next attempt. `mailq webhooks` has queues of its own: it \
makes events of results and posts them over HTTP. Names are those of the default configuration. \
Every message is persistent, and may come twice: after a loss of the connection it is published again."""

_ROLES = {
    "producer": "Publishes jobs.",
    "worker": "mailq itself.",
    "consumer": "Reads results. Acknowledge after the work is done; know a result by message_id and attempt.",
    "webhooks": "`mailq webhooks`, where endpoints are configured. Its queues are there once it has run.",
}

_WHAT = {
    "results": "Every final result.",
    "success": "Jobs that were delivered.",
    "failures": "Jobs that were given up.",
    "retry": "A copy of each job that will be tried again; `nextattempt.time` says when.",
}

_STANDARD = {
    "message_id": "Identity of the job; of a result: that of its job. Optional.",
    "delivery_mode": "2, persistent.",
    "priority": "Of the job, kept on its results where `rabbitmq.priorities` is true. Optional.",
    **dict.fromkeys(
        ("correlation_id", "reply_to", "type", "app_id"),
        "The producer's, kept on its results; mailq reads none. Optional.",
    ),
}


_EVENT_HEADERS: Object = {
    endpoint.EVENT: {"type": "string", "description": "Name of the event."},
    endpoint.TIME: {"type": "integer", "description": "When it was made, in seconds since 1970."},
    endpoint.JOB: {"type": "string", "description": "Identity of the job, `data.queueId`."},
    endpoint.ATTEMPT: {"type": "integer", "description": "Attempt of the job that it tells of."},
    endpoint.TRIES: {"type": "integer", "description": "How often the endpoint has refused it."},
    endpoint.AGAIN: {"type": "integer", "description": "1: it may be there twice."},
}


def document(config: RabbitConfig, webhooks: WebhooksConfig) -> str:
    """Return the AsyncAPI document for a configuration, as text that is the same each time."""
    whole = {
        "asyncapi": "3.0.0",
        "id": "urn:mailq:asyncapi",
        "info": {
            "title": "mailq",
            "version": mailq.__version__,
            "description": _INFO,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "tags": [{"name": name, "description": text} for name, text in _ROLES.items()],
        },
        "defaultContentType": "application/json",
        "servers": {"rabbitmq": _server(config)},
        "channels": _channels(config) | _webhook_channels(config, webhooks),
        "operations": _operations(config),
        "components": {
            "messages": _messages(),
            "securitySchemes": {"login": {"type": "userPassword", "description": "A user of the broker."}},
        },
    }
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _server(config: RabbitConfig) -> Object:
    url = urlsplit(config.url.get_secret_value())
    return {
        "host": f"{url.hostname}:{url.port or 5672}",
        "pathname": url.path or "/",
        "protocol": url.scheme,
        "protocolVersion": "0.9.1",
        "description": "RabbitMQ 3.10 to 4.x, `rabbitmq.url`.",
        "security": [_ref("components", "securitySchemes", "login")],
    }


def _channels(config: RabbitConfig) -> Object:
    declared = {queue.name: dict(queue.arguments) for queue in queues(config)}
    waiting = "Jobs that wait: one queue for each step, whose messages go back to the outbox after its TTL."
    channels = {
        "outbox": _queue(config.outbox, "Jobs to deliver.", "job", declared[config.outbox]),
        "delay": _delays(config.outbox, waiting, "job", declared, STEPS),
        "exchange": _exchange(config),
    }
    for channel, name in _result_queues(config).items():
        bound = _bound(config, (pattern for queue, pattern in bindings(config) if queue == name))
        channels[channel] = _queue(name, _WHAT[channel], "result", declared[name], bound)
    poison = "Messages that are no jobs, and jobs that came back too often."
    channels["poison"] = _queue(config.poison, poison, "poison", declared[config.poison])
    return channels


def _webhook_channels(config: RabbitConfig, webhooks: WebhooksConfig) -> Object:
    prefix, rules = webhooks.prefix, EndpointRules(webhooks.prefix, retries=webhooks.retries)
    own, steps = f"{prefix}.{{endpoint}}", rules.steps
    wanted = (*intake_queues(config, prefix), *endpoint_queues(config, prefix, "{endpoint}", steps))
    declared = {queue.name: dict(queue.arguments) for queue in wanted}
    endpoint = {"endpoint": {"description": "Name of an endpoint, as in [webhooks.endpoints.NAME]."}}
    told = "Results to tell of, from the exchange: events are made of them."
    waiting = "Events that an endpoint has refused: one queue for each step, back to the endpoint's after its TTL."
    given_up = "What was not taken within `webhooks.max_age`, and what is no event or result."
    channels = {
        "webhooks": _queue(prefix, told, "result", declared[prefix], _bound(config, OUTCOMES)),
        "webhookEndpoint": _queue(own, "Events for an endpoint, in their order.", "event", declared[own]),
        "webhookDelay": _delays(own, waiting, "event", declared, steps),
        "webhookDead": _queue(rules.dead, given_up, "deadEvent", declared[rules.dead]),
    }
    for channel in ("webhookEndpoint", "webhookDelay"):
        channels[channel]["parameters"] = endpoint | channels[channel].get("parameters", {})
    return channels


def _bound(config: RabbitConfig, patterns: Iterable[str]) -> Object:
    return {"x-bound-to": {"exchange": config.exchange, "patterns": list(patterns)}}


def _delays(queue: str, what: str, message: str, declared: Object, steps: Iterable[str]) -> Object:
    """Return one channel for all delay queues of a queue."""
    names = list(steps)
    arguments = declared[delay_queue(queue, names[0])] | {"x-message-ttl": {name: STEPS[name] * 1000 for name in names}}
    parameters = {"step": {"enum": names, "description": "How long a message stays in the queue."}}
    return _queue(delay_queue(queue, "{step}"), what, message, arguments) | {"parameters": parameters}


def _queue(name: str, what: str, message: str, arguments: Object, bound: Object | None = None) -> Object:
    return {
        "address": name,
        "description": what,
        "messages": {message: _ref("components", "messages", message)},
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": name, "durable": True, "exclusive": False, "autoDelete": False},
                "x-arguments": arguments,
                **(bound or {}),
                "bindingVersion": BINDING_VERSION,
            }
        },
    }


def _exchange(config: RabbitConfig) -> Object:
    return {
        "address": "{key}",
        "description": "Every result, once. Bind a queue of your own to get a copy of what you want.",
        "parameters": {
            "key": {
                "description": "`success`, or `failure` or `retry` followed by category and number of the bounce"
                " class: `failure.hard.10`, `retry.soft.22`. Bind with `success.#`, `failure.#`, `failure.hard.#`.",
                "examples": ["success", "failure.hard.10", "retry.soft.22"],
            }
        },
        "messages": {"result": _ref("components", "messages", "result")},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": config.exchange, "type": "topic", "durable": True, "autoDelete": False},
                "bindingVersion": BINDING_VERSION,
            }
        },
    }


def _result_queues(config: RabbitConfig) -> dict[str, str]:
    """Return the configured result queues by what they are for; an empty name means that there is none."""
    return {channel: name for channel in _WHAT if (name := getattr(config, channel))}


def _operations(config: RabbitConfig) -> Object:
    table = [
        ("publishJob", "producer", "send", "outbox", "job", "Wait for the confirm; a returned message reached nobody."),
        ("takeJob", "worker", "receive", "outbox", "job", "Acknowledged after the result was confirmed."),
        ("delayJob", "worker", "send", "delay", "job", "Until the next attempt, or until there is room for it."),
        ("publishResult", "worker", "send", "exchange", "result", "Each result, once."),
        ("setAside", "worker", "send", "poison", "poison", "What cannot be read as a job."),
        ("takeResult", "webhooks", "receive", "webhooks", "result", "Acknowledged after its events were confirmed."),
        ("queueEvent", "webhooks", "send", "webhookEndpoint", "event", "For each endpoint whose filters it passes."),
        ("takeEvent", "webhooks", "receive", "webhookEndpoint", "event", "Acknowledged after the endpoint took it."),
        ("delayEvent", "webhooks", "send", "webhookDelay", "event", "When the endpoint has refused this very event."),
        ("giveUpEvent", "webhooks", "send", "webhookDead", "deadEvent", "With the reason in its headers."),
    ]
    table += [
        (f"read{channel.title()}", "consumer", "receive", channel, "result", _WHAT[channel])
        for channel in _result_queues(config)
    ]
    return {name: _operation(*rest) for name, *rest in table}


def _operation(role: str, action: str, channel: str, message: str, summary: str) -> Object:
    how = {"deliveryMode": 2, "mandatory": True} if action == "send" else {"ack": True}
    return {
        "action": action,
        "channel": _ref("channels", channel),
        "summary": summary,
        "tags": [{"name": role}],
        "messages": [_ref("channels", channel, "messages", message)],
        "bindings": {"amqp": {**how, "bindingVersion": BINDING_VERSION}},
    }


def _messages() -> Object:
    trace = {"traceparent": {"type": "string", "description": "W3C trace context; passed on to the results."}}
    mark = {
        HEADER: {
            "type": "string",
            "description": "Written by mailq on its way back to the outbox: mark of the publication; flags;"
            " authentication code. Anybody else's is ignored.",
        }
    }
    counted = {
        ROUNDS: {"type": "integer", "description": "Results that came one from the other, this one counted."},
        DROPPED: {"type": "string", "description": "Names of the producer's headers that could not be passed on."},
    }
    why = {
        "x-mailq-reason": {"type": "string", "description": "Why it cannot be processed."},
        "x-mailq-state": {"type": "string", "description": "Where the attempt stood."},
        "x-mailq-time": {"type": "string", "description": "When it was put aside, in UTC."},
    }
    lost = {
        endpoint.REASON: {"type": "string", "description": "Why it was given up."},
        endpoint.ENDPOINT: {"type": "string", "description": "The endpoint it was for; absent where it was for none."},
    }
    told = {"message_id": "Identity of the event, its `x-mailq.id`.", "delivery_mode": _STANDARD["delivery_mode"]}
    zipped = {"content_encoding": "`gzip`, or absent; other spellings are read too."}
    return {
        "job": _message("One envelope, one recipient, one message.", "job", trace | mark, _STANDARD | zipped),
        "result": _message(
            "The job as it came, with one result for each attempt.", "message", trace | counted, _STANDARD | zipped
        ),
        "poison": {
            "summary": "The message as it came, octets untouched.",
            "headers": {"type": "object", "properties": trace | mark | why},
            "x-amqp-properties": _STANDARD | zipped,
        },
        "event": _message("An event, as it is posted to the endpoint.", "events", _EVENT_HEADERS, told),
        "deadEvent": {
            "summary": "The event or other message as it came, octets untouched.",
            "headers": {"type": "object", "properties": _EVENT_HEADERS | lost},
            "x-amqp-properties": {name: _STANDARD[name] for name in ("message_id", "delivery_mode")},
        },
    }


def _message(summary: str, schema: str, headers: Object, properties: dict[str, str]) -> Object:
    return {
        "summary": summary,
        "contentType": "application/json",
        "headers": {"type": "object", "properties": headers},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"{schema}.json"},
        },
        "examples": [{"payload": example} for example in EXAMPLES[schema]],
        "x-amqp-properties": properties,
    }


def _ref(*path: str) -> Object:
    return {"$ref": "#/" + "/".join(path)}
