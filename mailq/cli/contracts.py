"""Commands that print what others build on: schemas, the AsyncAPI document, the example configuration, the version."""

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

import mailq


def documents() -> dict[str, str]:
    """Return what is generated into `schemas/`, by file name without ending: JSON, the same text each time."""
    import orjson  # noqa: PLC0415 - `mailq version` needs none of these

    from mailq.config.rabbitmq import RabbitConfig  # noqa: PLC0415
    from mailq.config.webhooks import WebhooksConfig  # noqa: PLC0415
    from mailq.contracts import asyncapi  # noqa: PLC0415
    from mailq.contracts.examples import EXAMPLES  # noqa: PLC0415
    from mailq.core.results import schema  # noqa: PLC0415
    from mailq.core.webhooks import event_schema  # noqa: PLC0415

    made = {}
    for name, text in (schema.schemas() | {"events": event_schema.events_schema()}).items():
        document = orjson.loads(text) | {"examples": EXAMPLES[name]}
        made[name] = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    return made | {"asyncapi": asyncapi.document(RabbitConfig(), WebhooksConfig())}


def schemas(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", readable=False, help="Write one file for each into this folder."),
    ] = None,
) -> None:
    """Print or write the JSON Schemas of jobs, results and events, and the AsyncAPI document of queues.

    [dim]mailq schemas --out schemas[/dim]
    """
    if out is None:
        sys.stdout.writelines(documents().values())
        return
    from mailq.cli.directories import writing  # noqa: PLC0415 - see above

    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in documents().items():
            (out / f"{name}.json").write_text(text, "utf-8")


def example_config() -> None:
    """Print a configuration with every key, explained and at its default.

    [dim]mailq example-config > mailq.toml[/dim]
    """
    from mailq.config.example import example  # noqa: PLC0415 - see above

    sys.stdout.write(example())


def version() -> None:
    """Print the versions of mailq and of Python."""
    sys.stdout.write(f"mailq {mailq.__version__} (Python {platform.python_version()})\n")
