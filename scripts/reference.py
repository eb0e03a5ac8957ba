"""Generate the reference pages and the README's picture from the program: `make reference`.

`pages` returns every generated text by its path in the checkout; a test compares the files with these texts.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from mailq.cli import COMMANDS, build, naming
from mailq.config import Config
from mailq.config.example import toml
from mailq.core.bounce_classes import CLASSES
from mailq.core.smtp.failure import DEFAULTS, DEFAULTS_BY_KIND, Cause
from mailq.core.states import AUTH_STATES, LOCAL_STATES, Kind, State
from mailq.edges.metrics import Fleet, Metrics
from mailq.edges.metrics.webhooks import HookMetrics

ROOT = Path(__file__).parent.parent
MADE = "`make reference` generates this page from the program.\n"
BEGIN, END = "<!-- picture: begin -->\n", "<!-- picture: end -->\n"
NOT_BUILT = {"suppression", "responsive", "personalize", "rewrite", "handshake", "authxoauth2"}
"""States that no attempt reaches yet."""


def pages() -> dict[str, str]:
    """Return the generated texts by path; the README is its present text with the present picture."""
    readme = (ROOT / "README.md").read_text("utf-8")
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    return {
        "README.md": f"{head}{BEGIN}{picture()}{END}{tail}",
        "docs/reference/states.md": states(),
        "docs/reference/bounce-classes.md": classes(),
        "docs/reference/configuration-keys.md": keys(),
        "docs/reference/command-options.md": commands(),
        "docs/reference/metric-families.md": metrics(),
        "docs/reference/log-events.md": events(),
    }


def picture() -> str:
    """Return the job's way as a Mermaid diagram."""
    built = [state for state in State if state not in NOT_BUILT]
    local = [state for state in built if state in LOCAL_STATES or state is State.DNS]
    wire = [state for state in built if state not in local and state not in AUTH_STATES and state is not State.HELO]
    at = wire.index(State.STARTTLS) + 1
    lines = [
        "```mermaid",
        "flowchart LR",
        "    producer -->|JSON job| outbox[(outbox)] --> worker",
        "    subgraph attempt",
        "        direction LR",
        f"        {' --> '.join(local)} --> {' --> '.join([*wire[:at], 'auth', *wire[at:]])}",
        "    end",
        "    worker --> process",
        "    attempt -->|one result| verdict{verdict}",
        "    verdict -->|success| success[(success, results)]",
        "    verdict -->|failure| failures[(failures, results)]",
        "    verdict -->|retry| delay[(outbox.delay)] --> outbox",
        "```",
    ]
    return "\n".join(lines) + "\n"


def table(heads: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(cell: object) -> str:
    return re.sub(r"<(?=[A-Z])", "&lt;", " ".join(str(cell).split()).replace("|", "\\|"))


def states() -> str:
    """Return the page of states, with the code of each ending that no server worded."""
    rows = ((f"`{state}`", "reserved" if state in NOT_BUILT else "in use") for state in State)
    named = (
        (f"`{state}`", f"`{kind}`", default.code, default.status, default.text)
        for (state, kind), default in DEFAULTS.items()
    )
    others = (
        ("any other", f"`{kind}`", default.code, default.status, default.text)
        for kind, default in DEFAULTS_BY_KIND.items()
    )
    words = ("`" + "`, `".join(Kind) + "`", "`" + "`, `".join(Cause) + "`")
    return (
        f"# States\n\n{MADE}\n[Results](results.md) explains each state.\n\n"
        f"{table(('state', 'status'), rows)}\nThe property `result` is one of {words[0]}.\n\n"
        "## Codes without an answer\n\nA result has these codes where no server answered.\n\n"
        f"{table(('state', 'result', 'code', 'status', 'description'), iter([*named, *others]))}\n"
        f"## Causes of a delay\n\nA delay without an attempt has one of the causes {words[1]}.\n"
    )


def classes() -> str:
    """Return the page of bounce classes."""
    rows = (
        (number, each.name, f"`{each.category}`", f"`{each.about}`" if each.about else "the rule decides")
        for number, each in CLASSES.items()
    )
    text = "[Answers](answers.md) explains rules, patterns and flags."
    return f"# Bounce classes\n\n{MADE}\n{text}\n\n{table(('class', 'name', 'category', 'about'), rows)}"


def keys() -> str:
    """Return the page of configuration keys, a section for each table."""
    parts = [_table(name, field) for name, field in Config.model_fields.items()]
    text = "[Configuration](configuration.md) explains files, variables and tables."
    return f"# Configuration keys\n\n{MADE}\n{text}\n\n" + "\n".join(parts)


def _table(name: str, field: FieldInfo) -> str:
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inner = [key for key, each in kind.model_fields.items() if _model(each)]
        rows = _rows((key, each) for key, each in kind.model_fields.items() if key not in inner)
        text = f"## `[{name}]`\n\n{' '.join((kind.__doc__ or '').split())}\n\n{rows}"
        more = (_sub(f"[{name}.{key}.NAME]", kind.model_fields[key]) for key in inner)
        return text + "".join(f"\n{each}" for each in more)
    return _sub(f"[[{name}]]", field)


def _sub(head: str, field: FieldInfo) -> str:
    model = _model(field)
    assert model
    return f"## `{head}`\n\n{field.description or ''}\n\n{_rows(model.model_fields.items())}"


def _model(field: FieldInfo) -> type[BaseModel] | None:
    inner = (each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, BaseModel))
    return next(inner, None)


def _rows(fields: object) -> str:
    rows = ((f"`{key}`", _default(each), each.description or "") for key, each in fields)  # type: ignore[attr-defined]
    return table(("key", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{toml(value)}`"


def commands() -> str:
    """Return the page of commands with every argument and option."""
    app = get_command(build())
    naming.rename(app, "mailqctl", COMMANDS)
    parts = [_command(f"mailqctl {name}", app.commands[name]) for name in COMMANDS]  # type: ignore[attr-defined]
    text = "[Commands](commands.md) gives an overview and the exit statuses."
    return f"# Options of the commands\n\n{MADE}\n{text}\n\n" + "\n".join(parts)


def _command(name: str, command: typer.core.TyperCommand | typer.core.TyperGroup) -> str:
    about, *samples = re.split(r"\[/?dim\]", (command.help or "").replace("\b", "").strip())
    about = "\n\n".join(" ".join(part.split()) for part in about.strip().split("\n\n"))
    lines = [line.strip() for line in "\n".join(samples).splitlines() if line.strip()]
    about = f"{about}\n\n{''.join(f'    {line}' + chr(10) for line in lines)}".rstrip()
    options = []
    for each in command.params:
        told = getattr(each, "help", None) or ""
        given = ", ".join(f"`{text}`" for text in each.opts) if each.param_type_name == "option" else f"`{each.name}`"
        if each.name != "help" and not getattr(each, "hidden", False):
            options.append((given, told))
    rows = table(("option or argument", "meaning"), iter(options)) if options else ""
    below = getattr(command, "commands", {})
    return f"## {name}\n\n{about}\n\n{rows}" + "".join(
        f"\n{_command(f'{name} {key}', below[key])}" for key in sorted(below)
    )


def metrics() -> str:
    """Return the page of metric families, as the ports of worker, supervisor and webhooks show them."""
    shown = [
        ("worker", Metrics().page()[1]),
        ("supervisor", Fleet(1).page({}, {})[1]),
        ("webhooks", HookMetrics(("crm",), Mock()).page()[1]),
    ]
    found: dict[str, tuple[str, str, list[str]]] = {}
    for where, page in shown:
        text = page.decode()
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        for name, told in re.findall(r"^# HELP (mailq_\S+) (.*)$", text, re.MULTILINE):
            found.setdefault(name, (types[name], told, []))[2].append(where)
    rows = ((f"`{name}`", kind, ", ".join(places), told) for name, (kind, told, places) in found.items())
    text = "[Metrics and log](metrics.md) explains labels and ports."
    return f"# Metric families\n\n{MADE}\n{text}\n\n{table(('metric', 'type', 'port of', 'meaning'), rows)}"


def events() -> str:
    """Return the page of log events: each event with its levels and properties, as the source names them."""
    found: dict[str, tuple[set[str], set[str]]] = {"attempt": ({"info"}, {"the whole result in short"})}
    for path in sorted((ROOT / "mailq").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and (event := _event(call)):
                level, name = event
                levels, fields = found.setdefault(name, (set(), set()))
                levels.add(level)
                fields.update(f"`{each.arg}`" for each in call.keywords if each.arg)
    rows = (
        (f"`{name}`", ", ".join(sorted(levels)), ", ".join(sorted(fields)))
        for name, (levels, fields) in sorted(found.items())
    )
    text = (
        "The log has one JSON object a line; `event` names the event. [Metrics and log](metrics.md) explains the form."
    )
    return f"# Log events\n\n{MADE}\n{text}\n\n{table(('event', 'level', 'properties'), rows)}"


def _event(call: ast.Call) -> tuple[str, str] | None:
    method = call.func
    if not isinstance(method, ast.Attribute) or not ast.unparse(method.value).endswith("logger"):
        return None
    words = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if method.attr in {"debug", "info", "warning", "error"} and words:
        return method.attr, words[0]
    return ("varies", words[0]) if method.attr == "log" and words else None


if __name__ == "__main__":
    for page, content in pages().items():
        (ROOT / page).write_text(content, "utf-8")
