"""A job: what a producer asks for in one JSON message, typed once and republished untouched.

`Job.parse` is the only way in. It has the `document` read, checks every property that mailq knows, and keeps
the producer's raw document beside the typed view, because results go back with everything the producer put
there. What cannot be read ends as `InvalidJobError`, which says where (a JSON pointer, RFC 6901) and why.
"""

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from mailq.core.answers.formula import FORMULA, LONGEST, MOST, from_formula
from mailq.core.jobs.address import Address, AddressError, host_name, read_address
from mailq.core.jobs.document import InvalidJobError, Unpacked, load, unpack
from mailq.core.jobs.tolerance import mend
from mailq.core.times import parse_time

NOT_BUILT = ("data", "key", "dkim", "inlinecss", "headers", "security")
"""Properties that are understood but not acted on yet: a job that asks for one is refused."""

_NOT_BUILT = frozenset(NOT_BUILT)

MAX_IPS = 256
"""Addresses in `ips`: each costs a look at the host's own."""

MAX_TAGS = 1_000
"""Labels in `tags`."""

MAX_NOTIFY = 100
"""Characters of `dsn.notify`, which names three words at most."""

MAX_QUEUES = 20
"""Properties of `queues` that are looked at one by one."""


_NO_POOL = "The property pool was not looked at, since ips names the addresses."

_NULL_SENDER = ("", "<>")

_REFUSED = {"recipient": (553, "5.1.3"), "envelope": (553, "5.1.7")}
"""SMTP code and status for a property whose text is no address (RFC 5321 section 4.2.3, RFC 3463 section 3.2)."""


def _address(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError("is not a string")  # noqa: TRY004 - pydantic collects ValueErrors
    try:
        return read_address(value)
    except AddressError as trouble:
        raise ValueError(f"{trouble}") from None


def _sender(value: object) -> Address | None:
    return None if value is None or (isinstance(value, str) and value.strip() in _NULL_SENDER) else _address(value)


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("is not a string")  # noqa: TRY004
    try:
        return parse_time(value)
    except ValueError:
        raise ValueError("is not a time of the form YYYY-MM-DD HH:MM:SS (UTC)") from None


def _consumption(value: object) -> datetime:
    moment = _moment(value)
    if not 1970 <= moment.year <= 9000:  # to be added to, and written again
        raise ValueError("is no year of mailq, which writes this property itself")
    return moment


def _schedule(value: object) -> object:
    return list(from_formula(value)) if isinstance(value, str) else value


def _host(value: str) -> str:
    try:
        return host_name(value)
    except AddressError:
        raise ValueError("is not a host name or an IP address") from None


_TIME_SCHEMA = {"type": "string", "examples": ["2030-01-31 12:00:00"]}
NotBuilt = Annotated[Any, WithJsonSchema({"enum": [None, False, "", []]})]
Recipient = Annotated[Address, PlainValidator(_address), WithJsonSchema({"type": "string"})]
Sender = Annotated[Address | None, PlainValidator(_sender), WithJsonSchema({"type": "string"})]
Moment = Annotated[datetime, PlainValidator(_moment), WithJsonSchema(_TIME_SCHEMA)]
Consumption = Annotated[datetime, PlainValidator(_consumption), WithJsonSchema(_TIME_SCHEMA)]
QueueName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
PoolName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Host = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x20\x7f/@]+$"),
    AfterValidator(_host),
]
Xtext = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[\x20-\x7e]+$")]
Original = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Credential = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00\r\n]+$")]
Password = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00\r\n]*$")]


_Waits = Annotated[list[Annotated[int, Field(ge=1, le=LONGEST)]], Field(min_length=1, max_length=MOST)]
_FORMULA_SCHEMA = {"type": "string", "pattern": FORMULA, "examples": ["5*2^n"]}
Retries = Annotated[
    _Waits,
    BeforeValidator(_schedule),
    WithJsonSchema({"anyOf": [TypeAdapter(_Waits).json_schema(), _FORMULA_SCHEMA]}),
]


# In any case, letter by letter: the schemas' readers in JavaScript have no (?i:...).
_NEVER = "[Nn][Ee][Vv][Ee][Rr]"
_FULL, _HDRS = "[Ff][Uu][Ll][Ll]", "[Hh][Dd][Rr][Ss]"
_EVENT = "[Ss][Uu][Cc][Cc][Ee][Ss][Ss]|[Ff][Aa][Ii][Ll][Uu][Rr][Ee]|[Dd][Ee][Ll][Aa][Yy]"


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class NextAttempt(_Asked):
    """When the job may be attempted; mailq writes it on each retry."""

    time: Moment = Field(description="Not before this moment.")
    ip: str | None = Field(None, description="From this source address, if it may still be used: greylisting.")


class Dsn(_Asked):
    """Delivery status notifications asked of the receiving server (RFC 3461), if it offers them."""

    notify: str | None = Field(
        None,
        max_length=MAX_NOTIFY,
        pattern=rf"^({_NEVER}|({_EVENT})(\s*,\s*({_EVENT}))*)$",
        description="NEVER, or a comma list of SUCCESS, FAILURE and DELAY (RCPT parameter NOTIFY).",
    )
    ret: Annotated[str, StringConstraints(pattern=rf"^({_FULL}|{_HDRS})$")] | None = Field(
        None, description="What a bounce returns, FULL or HDRS (MAIL parameter RET)."
    )
    orcpt: Original | None = Field(
        None,
        description="Original recipient (RCPT parameter ORCPT); `rfc822;` is put before a bare address, `utf-8;` before"
        " one that is not ASCII (RFC 6533).",
    )
    envid: Annotated[Xtext, StringConstraints(max_length=100)] | None = Field(
        None, description="Envelope identifier (MAIL parameter ENVID)."
    )


class Queues(_Asked):
    """Where this job's results go instead of the configured queues; null switches one off."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_QUEUES:  # or each unknown one would be reported
            raise ValueError("has more properties than there can be queues")
        return value

    results: QueueName | None = Field(None, description="For the final result, whichever it is.")
    success: QueueName | None = Field(None, description="For the result of a delivered job.")
    failure: QueueName | None = Field(None, description="For the result of a job given up.")
    retry: QueueName | None = Field(None, description="For a copy of each result that is not final.")
    dsn: QueueName | None = Field(None, description="Kept, not used: mailq makes no DSN messages itself.")


class Smarthost(_Asked):
    """A server that gets the message instead of the recipient's MX hosts."""

    hostname: Host = Field(description="Host name or IP address; its MX records are not looked at.")
    port: int = Field(25, ge=1, le=65535, description="Port; on 465 TLS comes first (RFC 8314).")
    username: Credential | None = Field(None, description="Log in as this user.")
    password: Password | None = Field(
        None, description="With this password, absent or empty: an empty one; never in a result.", repr=False
    )


class Job(_Asked):
    """One envelope, one recipient, one message. Unknown properties are kept and come back."""

    # Lists fail fast: each of a million wrong items would be reported, at some 1 kB.

    recipient: Recipient = Field(description="The one RCPT TO address.")
    envelope: Sender = Field(None, description="The MAIL FROM address; absent or empty: `MAIL FROM:<>`.")
    mime: Annotated[str | dict[str, Any] | None, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]})] = (
        Field(None, description="The message, header and body (RFC 5322).")
    )
    keepmime: bool = Field(False, description="Leave `mime` in the final result.")
    ips: list[str] | None = Field(
        None, fail_fast=True, max_length=MAX_IPS, description="Local IP addresses it may be sent from."
    )
    pool: PoolName | None = Field(None, description="Send it from the sources of this pool.")
    nextattempt: NextAttempt | None = Field(None, description="Not to be attempted before; written on retries.")
    delayed: Moment | None = Field(None, description="Older name of `nextattempt.time`.")
    maxdelivertime: Moment | None = Field(None, description="Give up after this moment.")
    useful_until: Moment | None = Field(None, description="No use after this moment: the last attempt is before it.")
    maxattempts: int | None = Field(None, ge=0, lt=2**53, description="Give up after so many attempts; 0: no limit.")
    retries: Retries | None = Field(
        None,
        description="Seconds between attempts, the last repeats; or a formula in n, the attempts made, such as 5*2^n.",
    )
    force: bool = Field(False, description="Deliver even if CSS or a template cannot be converted; not built yet.")
    dryrun: bool = Field(False, description="Go as far as RCPT TO, then RSET: the same result, never a message.")
    dsn: Dsn | None = Field(None, description="Delivery status notifications to ask for.")
    queues: Queues | None = Field(None, description="Result queues of this job alone.")
    smarthost: Smarthost | None = Field(None, description="Deliver through this server.")
    tags: list[str] = Field(default_factory=list, fail_fast=True, max_length=MAX_TAGS, description="Free labels.")
    priority: int | None = Field(
        None,
        ge=0,
        le=255,
        description="AMQP priority on the way back to the outbox; used where `rabbitmq.priorities` is true.",
    )
    id: Identity | None = Field(None, description="The producer's identity of the job.")
    on_doubt: Literal["retry", "fail"] | None = Field(
        None,
        description="After a loss between the final dot and its answer: send it again, perhaps twice, or give it up;"
        " else as delivery.on_doubt says.",
    )
    seen: Consumption | None = Field(None, description="First consumption; written by mailq.")
    results: list[dict[str, Any]] = Field(
        default_factory=list, fail_fast=True, description="Earlier attempts, oldest first."
    )

    data: NotBuilt = Field(None, description="Template variables. Not built yet: refused.")
    key: NotBuilt = Field(None, description="Key of the message in a store. Not built yet: refused.")
    dkim: NotBuilt = Field(None, description="DKIM keys to sign with. Not built yet: refused.")
    inlinecss: Annotated[bool, WithJsonSchema({"enum": [False, None]})] = Field(
        False, description="Move CSS into attributes. Not built yet: refused when true."
    )
    headers: NotBuilt = Field(None, description="Edits of the header. Not built yet: refused.")
    security: NotBuilt = Field(None, description="TLS policy of this job. Not built yet: refused.")

    if TYPE_CHECKING:
        # Set by `parse` in the instance's dictionary: pydantic's private attributes cost ten times as much to read.
        document: dict[str, Any]
        """The producer's raw document, to be republished; never changed in place."""
        identity: str
        """AMQP message id, else the job's `id`, else a digest of the body."""
        warnings: tuple[str, ...]
        """The mends that `parse` made, a short plain sentence each; every result of the job tells it."""

    @property
    def attempt(self) -> int:
        """The number of the attempt to be made now, counted from 1."""
        return len(self.results) + 1

    @property
    def bugs(self) -> int:
        """The number of attempts, of those just before this one, that met a bug of mailq."""
        sound = (number for number, result in enumerate(reversed(self.results)) if "bug" not in result)
        return next(sound, len(self.results))

    @property
    def due(self) -> datetime | None:
        """The moment before which the job must not be attempted, if any."""
        return self.nextattempt.time if self.nextattempt else self.delayed

    @classmethod
    def parse(
        cls,
        body: bytes,
        *,
        encoding: str | None = None,
        message_id: str | None = None,
        limit: int,
        strict: bool = False,
    ) -> Self:
        """Return the job in an AMQP body of at most `limit` octets (after gzip is undone).

        Raises:
            InvalidJobError: it is not a job; names the place and the remedy.
        """
        return cls.read(unpack(body, encoding, limit), body, message_id=message_id, strict=strict)

    @classmethod
    def read(cls, unpacked: Unpacked, body: bytes, *, message_id: str | None = None, strict: bool = False) -> Self:
        """Return the job in an AMQP body that was unpacked; unless `strict`, forms of a plain meaning are taken.

        Raises:
            InvalidJobError: it is not a job; names the place and the remedy.
        """
        document, warnings = load(unpacked)
        given = _without_nulls(document)
        plain = _NOT_BUILT.isdisjoint(given)
        if not strict and (not plain or "queues" in given) and (unclear := _unclear(given, plain=plain)):
            given, mended = mend(given, unclear)
            warnings = (*warnings, *mended)
        try:
            job = cls.model_validate(given)
        except ValidationError as trouble:
            job, given, mended = cls._tolerated(given, document, trouble, strict=strict)
            warnings = (*warnings, *mended)
        identity = message_id or job.id or hashlib.blake2b(body, digest_size=16).hexdigest()
        warnings = (*warnings, *_mended(job))
        vars(job).update(document=document, identity=identity, warnings=warnings)
        if not plain or isinstance(job.mime, dict):
            job._refuse_not_built(given)
        return job

    @classmethod
    def _tolerated(
        cls, given: dict[str, Any], document: dict[str, Any], trouble: ValidationError, *, strict: bool
    ) -> tuple[Self, dict[str, Any], tuple[str, ...]]:
        """Return the job, what was read as it, and what was mended, where the model refuses what was given."""
        wrong = {str(error["loc"][0]) for error in trouble.errors(include_url=False, include_input=False)}
        read, mended = mend(given, wrong, strict=strict)
        if mended:
            try:
                return cls.model_validate(read), read, mended
            except ValidationError as another:
                trouble = another
        raise _refusal(document, trouble)

    def _refuse_not_built(self, given: dict[str, Any]) -> None:
        asked = [name for name in NOT_BUILT if name in given and _asks(given[name])]
        if isinstance(self.mime, dict):
            asked.append("mime")
        if asked:
            reason = f"asks for something mailq does not do yet: {', '.join(asked)}; remove it"
            raise InvalidJobError(reason, f"/{asked[0]}", self.document)


def _unclear(given: dict[str, Any], *, plain: bool) -> list[str]:
    """Return the properties that the model takes, though their plain meaning may be another one."""
    unclear = [] if plain else [name for name in NOT_BUILT if name in given and given[name] == {}]
    queues = given.get("queues")
    if isinstance(queues, dict) and "null" in queues.values():
        unclear.append("queues")
    return unclear


def _refusal(document: dict[str, Any], trouble: ValidationError) -> InvalidJobError:
    """Return the refusal of a document, for the first thing that is wrong in it."""
    error = trouble.errors(include_url=False, include_input=False)[0]
    reason = error["msg"].removeprefix("Value error, ")
    pointer = _pointer(document, error["loc"])
    code, status = _told(document, pointer[1:])
    return InvalidJobError(reason, pointer, document, code=code, status=status)


def _told(document: dict[str, Any], name: str) -> tuple[int | None, str | None]:
    """Return code and status for an invalid property; a property that is no text is no address of anybody."""
    return _REFUSED.get(name, (None, None)) if isinstance(document.get(name), str) else (None, None)


def _mended(job: Job) -> tuple[str, ...]:
    """Return what was mended in the addresses, and that a pool counts for nothing, a sentence each."""
    if job.pool is not None and job.ips is not None:
        return (*_addresses(job), _NO_POOL)
    return _addresses(job)


def _addresses(job: Job) -> tuple[str, ...]:
    if not job.recipient.mended and (job.envelope is None or not job.envelope.mended):
        return ()
    sender = job.envelope.mended if job.envelope else ()
    return (*(f"The recipient {end}." for end in job.recipient.mended), *(f"The envelope {end}." for end in sender))


def _without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    """Return the properties that have a value: null is as good as absent."""
    if None not in document.values():
        return document
    return {name: value for name, value in document.items() if value is not None}


def _asks(value: object) -> bool:
    """Tell whether a property asks for something: `{}` does, an empty list, text or false does not."""
    return value is not None and value is not False and value not in ([], "")


def _pointer(document: dict[str, Any], location: tuple[int | str, ...]) -> str:
    """Return the JSON pointer of an error; names of union members in `location` are left out."""
    node: Any = document
    pointer = ""
    for part in location:
        inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if not inside and not (isinstance(node, dict) and part == location[-1]):
            break
        pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
        node = node[part] if inside else None
    return pointer
