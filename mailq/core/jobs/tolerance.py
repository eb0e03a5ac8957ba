"""Forms of a job's properties that have a plain meaning, though a job should not have them. Pure.

`TABLE` says for each property which forms are taken and how each is read. `mend` is called for properties that were
refused, so a job in form costs nothing and a property in form is never changed. Each mend is one sentence for the
`warnings` of the job's results. The document itself stays as the producer wrote it.
No row is for what decides whether mail goes out and to whom: `recipient`, `envelope`, `mime`, and a `dryrun` that is
neither clearly true nor clearly false. See docs/reference/tolerance.md, which is made from the table.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import orjson

from mailq.core.times import assume_utc

MAX_ITEMS = 1_000
"""Items of a list that are looked at one by one; a longer list is refused as it is."""

MAX_NAMES = 20
"""Unknown names in `queues`; an object with more is refused as it is."""

_TOLD_NAMES, _TOLD_LETTERS = 3, 40

ABSENT: Final = object()
"""Read for a property that counts as absent."""

EACH = "*"
"""Stands in a path for every item of a list, or every name of an object."""

Path = tuple[str, ...]
Json = Any  # whatever it holds
Document = dict[str, Any]


class Mend(NamedTuple):
    """One form that is taken: `read` returns the value meant, or the very value where it has not this form.

    `told` ends the warning. `examples` are pairs of JSON texts, given and read; "" stands for absent. `always` holds in
    strict mode too.
    """

    read: Callable[[Json], Json]
    told: str
    examples: tuple[tuple[str, str], ...]
    always: bool = False


_NUMBERS = re.compile(r"[0-9 \t,.+-]+")
_DIGITS = re.compile(r"[+-]?[0-9]{1,18}")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def _empty(value: Json) -> Json:
    return ABSENT if isinstance(value, str | list | dict) and not value else value


def _null(value: Json) -> Json:
    return ABSENT if value is None else value


def _whole(value: Json) -> Json:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _digits(value: Json) -> Json:
    return int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else value


def _flag_number(value: Json) -> Json:
    return bool(value) if isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1) else value


def _flag_text(value: Json) -> Json:
    return _FLAGS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _text(value: Json) -> Json:
    if isinstance(value, orjson.Fragment):  # an integer of more than 64 bits
        return orjson.dumps(value).decode()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_text(value: Json) -> Json:
    return [value] if isinstance(value, str) else value


def _one_number(value: Json) -> Json:
    if isinstance(value, str):  # another text may be meant as a formula, and is refused as one
        return value.split(",", MAX_ITEMS) if _NUMBERS.fullmatch(value) else value
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _numbered(value: Json) -> Json:
    named = isinstance(value, dict) and value and all(name.isdecimal() for name in value)
    return list(value.values()) if named else value


def _joined(value: Json) -> Json:
    texts = isinstance(value, list) and len(value) <= MAX_ITEMS and all(isinstance(item, str) for item in value)
    return ",".join(value) if texts else value


def _null_text(value: Json) -> Json:
    return None if value == "null" else value


def _known(value: Json) -> Json:
    unknown = _unknown(value)
    return {name: value[name] for name in value if name not in unknown} if unknown else value


def _unknown(value: Json) -> list[str]:
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        return []
    return [name for name in value if name not in QUEUES]


def _older_name(value: Json) -> Json:
    if not isinstance(value, dict) or value.get("hostname") is not None or not isinstance(value.get("name"), str):
        return value
    return {name: item for name, item in value.items() if name != "name"} | {"hostname": value["name"]}


def _time_alone(value: Json) -> Json:
    return {"time": value} if isinstance(value, str) else value


def _time(value: Json) -> Json:
    return (assume_utc(value) or value) if isinstance(value, str) else value


QUEUES = ("results", "success", "failure", "retry", "dsn")
"""Names that `queues` may have."""

EMPTY = Mend(_empty, "was empty, and counts as absent", (('""', ""), ("[]", ""), ("{}", "")))
NO_LIST = EMPTY._replace(examples=(('""', ""), ("{}", "")))
NO_OBJECT = EMPTY._replace(examples=(('""', ""), ("[]", "")))
OBJECT = EMPTY._replace(examples=(("{}", ""),))
NULL = Mend(_null, "was null, and counts as absent", (("null", ""),))
WHOLE = Mend(_whole, "was a number with a decimal point, and was read as an integer", (("3.0", "3"),), always=True)
DIGITS = Mend(_digits, "was text, and was read as a number", (('"3"', "3"),))
FLAG_NUMBER = Mend(_flag_number, "was a number, and was read as true or false", (("1", "true"), ("0", "false")))
FLAG_TEXT = Mend(
    _flag_text,
    "was text, and was read as true or false",
    (('"true"', "true"), ('"false"', "false"), ('"1"', "true"), ('"0"', "false")),
)
TEXT = Mend(_text, "was a number, and was read as text", (("3", '"3"'),))
ONE_TEXT = Mend(_one_text, "was text, and was read as a list of one", (('"192.0.2.1"', '["192.0.2.1"]'),))
ONE_NUMBER = Mend(_one_number, "was no list, and was read as one", (("600", "[600]"), ('"600,1800"', '["600","1800"]')))
NUMBERED = Mend(
    _numbered,
    "was an object with numbers as names, and was read as a list",
    (('{"1":"192.0.2.1"}', '["192.0.2.1"]'),),
)
JOINED = Mend(_joined, "was a list, and was read as a comma list", (('["SUCCESS","FAILURE"]', '"SUCCESS,FAILURE"'),))
NULL_TEXT = Mend(_null_text, "was the text null, and was read as null", (('"null"', "null"),))
UNKNOWN = Mend(_known, "has names that mailq does not know, which were ignored", (('{"bounces":"b"}', "{}"),))
OLDER_NAME = Mend(
    _older_name,
    "has the name of MailerQ 3.0, name, which was read as hostname",
    (('{"name":"mx.example"}', '{"hostname":"mx.example"}'),),
)
TIME_ALONE = Mend(
    _time_alone,
    "was a time, and was read as an object with it",
    (('"2030-01-31 12:00:00"', '{"time":"2030-01-31 12:00:00"}'),),
)
TIME = Mend(
    _time,
    "names no offset, and was read as UTC",
    (
        ('"2030-01-31T12:00:00"', '"2030-01-31T12:00:00Z"'),
        ('"2030-01-31 12:00:00.5"', '"2030-01-31 12:00:00.5Z"'),
        ('"2030-01-31 12:00"', '"2030-01-31 12:00Z"'),
    ),
)

_FLAG = (EMPTY, FLAG_NUMBER, FLAG_TEXT)
_INTEGER = (WHOLE, EMPTY, DIGITS)
_MOMENT = (EMPTY, TIME)
_LIST = (NO_LIST, ONE_TEXT, NUMBERED)

TABLE: dict[Path, tuple[Mend, ...]] = {
    ("keepmime",): _FLAG,
    ("ips",): _LIST,
    ("pool",): (EMPTY, TEXT),
    ("nextattempt",): (EMPTY, TIME_ALONE),
    ("nextattempt", "time"): (TIME,),
    ("nextattempt", "ip"): (EMPTY,),
    ("delayed",): _MOMENT,
    ("maxdelivertime",): _MOMENT,
    ("useful_until",): _MOMENT,
    ("maxattempts",): _INTEGER,
    ("retries",): (EMPTY, ONE_NUMBER, NUMBERED._replace(examples=(('{"1":600}', "[600]"),))),
    ("retries", EACH): (WHOLE, DIGITS),
    ("force",): _FLAG,
    ("dryrun",): (FLAG_NUMBER, FLAG_TEXT),
    ("dsn",): (NO_OBJECT,),
    ("dsn", "notify"): (EMPTY, JOINED),
    ("dsn", "ret"): (EMPTY,),
    ("dsn", "orcpt"): (EMPTY,),
    ("dsn", "envid"): (EMPTY, TEXT),
    ("queues",): (NO_OBJECT, UNKNOWN),
    ("queues", EACH): (EMPTY, NULL_TEXT),
    ("smarthost",): (EMPTY, OLDER_NAME),
    ("smarthost", "port"): (WHOLE, EMPTY, NULL, DIGITS),
    ("smarthost", "username"): (EMPTY,),
    ("tags",): _LIST,
    ("tags", EACH): (TEXT,),
    ("priority",): _INTEGER,
    ("id",): (EMPTY, TEXT),
    ("on_doubt",): (EMPTY,),
    ("seen",): _MOMENT,
    ("results",): (NO_LIST,),
    ("key",): (OBJECT,),
    ("dkim",): (OBJECT,),
    ("inlinecss",): _FLAG,
    ("headers",): (OBJECT,),
    ("security",): (OBJECT,),
}
"""Each place in a job with the forms that are taken there; an object or list comes before what is in it."""

_ROOTS = frozenset(path[0] for path in TABLE)


def mend(document: Document, wrong: Collection[str], *, strict: bool = False) -> tuple[Document, tuple[str, ...]]:
    """Return the document with the properties in `wrong` read by the table, and what was mended, a sentence each.

    The given document stays as it is; in strict mode only an integer may have another form, that of JSON.
    """
    wrong = _ROOTS.intersection(wrong)
    node: Document = document
    told: dict[str, None] = {}
    for path, mends in TABLE.items():
        if path[0] in wrong and path[0] in node:
            allowed = tuple(each for each in mends if each.always) if strict else mends
            node = _mended(node, path, allowed, path, told)
    return node, tuple(told)


def means_true(value: object) -> bool:
    """Tell whether a property asks for something, in a form that is taken for true."""
    return value is True or (value is not False and _flag_text(_flag_number(value)) is True)


def _mended(node: Json, path: Path, mends: tuple[Mend, ...], whole: Path, told: dict[str, None]) -> Json:
    """Return a value with what is at a path in it mended."""
    if not path:
        return _read(node, mends, whole, told)
    name, rest = path[0], path[1:]
    if isinstance(node, dict):
        names = (tuple(node) if len(node) <= MAX_ITEMS else ()) if name == EACH else (name,) if name in node else ()
        for each in names:
            value = _mended(node[each], rest, mends, whole, told)
            if value is ABSENT:
                node = {other: item for other, item in node.items() if other != each}
            elif value is not node[each]:
                node = {**node, each: value}
        return node
    if isinstance(node, list) and name == EACH and len(node) <= MAX_ITEMS:
        return [_mended(item, rest, mends, whole, told) for item in node]
    return node


def _read(value: Json, mends: tuple[Mend, ...], path: Path, told: dict[str, None]) -> Json:
    for each in mends:
        meant = each.read(value)
        if meant is not value:
            told[f"{_subject(path)} {each.told}{_named(each, value)}."] = None
            return meant
    return value


def _subject(path: Path) -> str:
    if path[-1] != EACH:
        return f"The property {'.'.join(path)}"
    return f"A value in {path[0]}"


def _named(each: Mend, value: Json) -> str:
    if each is not UNKNOWN:
        return ""
    unknown = _unknown(value)
    more = ", …" if len(unknown) > _TOLD_NAMES else ""
    return ": " + ", ".join(name[:_TOLD_LETTERS] for name in unknown[:_TOLD_NAMES]) + more


_PAGE = """# Forms of a job that are taken

`make schemas` makes this page from the table in `mailq/core/jobs/tolerance.py`.
[schemas/job.json](../../schemas/job.json) has the form that a job should have; the worker always takes that. Unless
`delivery.strict` is true, the worker also takes the forms below, which have a plain meaning. Each one adds a sentence
to `warnings` of every result of the job. The producer's document stays as it came: on result queues, and on its way
back to the outbox.

The worker changes no property that is in form: `"ips": []` is a list without an address, not an absent one. It guesses
nothing that decides whether mail goes out and to whom. `recipient`, `envelope` and `mime` of another type are refused,
and so is a `dryrun` that is neither clearly true nor clearly false. Blanks and display names around addresses are taken
off in both modes, see [jobs](jobs.md).

A name with `*` stands for every value of a list or object. Rows of a property are tried from the first to the last.

"""


def as_markdown() -> str:
    """Return the page for people: each place, the forms that are taken besides its own, and how each is read."""
    rows = ["| property | given | read as |", "|---|---|---|"]
    for path, mends in TABLE.items():
        for each in mends:
            given = ", ".join(f"`{example}`" for example, _ in each.examples)
            meant = ", ".join(dict.fromkeys(f"`{meant}`" if meant else "absent" for _, meant in each.examples))
            note = "; in strict mode too" if each.always else ""
            rows.append(f"| `{'.'.join(path)}` | {given} | {meant}{note} |")
    return _PAGE + "\n".join(rows) + "\n"
