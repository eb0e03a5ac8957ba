"""What is published when an attempt is settled: documents with results, and where they go. Pure.

Every result leaves once, through the topic exchange, whose bindings fan it out; only a job with
`queues` of its own is addressed queue by queue. What result queues get holds no secret and no
message (unless `keepmime`); what goes back to the outbox keeps both.
"""

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

import orjson

from mailq.core.answers.actions import apply_to_document, apply_to_result
from mailq.core.answers.classify import Classification
from mailq.core.answers.deadline import timed_out
from mailq.core.answers.verdict import Outcome, Verdict
from mailq.core.broker.application_headers import application, passed_on, result_headers, same_rounds
from mailq.core.broker.messages import Consumed, Fallback, Publication
from mailq.core.broker.provenance import HEADER, UNKNOWN, Provenance
from mailq.core.content.mime import MAX_HEADER, SHORT, extract, normalize, without_mark
from mailq.core.delay_queues import delay_step
from mailq.core.jobs.job import Job, Queues
from mailq.core.jobs.tolerance import means_true
from mailq.core.results.result import Certificates, Result
from mailq.core.smtp.failure import Cause, Delayed
from mailq.core.smtp.reply import printable
from mailq.core.times import format_time

Document = dict[str, Any]

HELD = {
    Cause.CONNECTIONS: "Connection limit reached",
    Cause.RATE: "Rate limit reached",
    Cause.SILENCE: "Destination is slow to answer",
    Cause.PAUSE: "Sending IP temporarily suspended",
    Cause.LOGIN: "Login refused",
}
"""The causes of a delay that consumers may be told of, and their words."""


@dataclass(frozen=True, slots=True)
class Names:
    """The broker's names that publications need; an empty queue name means: no such queue.

    `webhooks` is the prefix of the queues of webhooks; `events` is the queue that events are made from, empty where no
    endpoint is configured. `job_queues` has those that the queues of jobs are held to. `priorities` tells whether jobs
    on their way back, and results, carry the AMQP priority. A result of `gzip` octets or more is compressed, 0: none.
    `delays` tells whether a job that is held back is told once before each attempt.
    """

    exchange: str = "mailq"
    outbox: str = "outbox"
    poison: str = "outbox.poison"
    results: str = "results"
    success: str = "success"
    failures: str = "failures"
    retry: str = "retry"
    webhooks: str = "webhooks"
    job_queues: tuple[str, ...] = ()
    priorities: bool = False
    events: str = ""
    gzip: int = 0
    delays: bool = False

    def queues_of(self, outcome: Outcome) -> dict[str, str]:
        """Return the configured queues of an outcome, by the property of `queues` that overrides each."""
        return _queues_of(self)[outcome]


@lru_cache(maxsize=8)
def _queues_of(names: Names) -> dict[Outcome, dict[str, str]]:
    return {
        Outcome.SUCCESS: {"results": names.results, "success": names.success},
        Outcome.FAILURE: {"results": names.results, "failure": names.failures},
        Outcome.RETRY: {"retry": names.retry},
    }


def settle(
    job: Job,
    result: Result,
    verdict: Verdict,
    names: Names,
    consumed: Consumed,
    now: datetime,
    provenance: Provenance = UNKNOWN,
    sources: Sequence[str] = (),
    certificates: Certificates = "full",
) -> tuple[Publication, ...]:
    """Return what to publish for a judged attempt; the job may be acknowledged when all is confirmed.

    `provenance` is what the job takes along on its way back; `sources` are the addresses that patterns choose from.
    """
    document = with_result(job.document, result, verdict, sources, certificates)
    document["seen"] = format_time(job.seen or now)
    told = report(document, verdict, names, consumed, job.queues, message_id=job.identity, extracted=result.extracted)
    publications = list(told)
    if verdict.at is not None:
        publications.append(until_due(job, document, verdict.at, names, consumed, now, provenance))
    return tuple(publications)


def with_result(
    document: Document,
    result: Result,
    verdict: Verdict,
    sources: Sequence[str] = (),
    certificates: Certificates = "full",
) -> Document:
    """Return a copy of the document with the result appended and the next attempt's time set."""
    record = result.as_json(certificates)
    if means_true(document.get("dryrun", False)):
        record["dryrun"] = True
    if verdict.classification is not None:
        record |= _classified(verdict.classification) | {"ruleset": verdict.ruleset}
    if verdict.expired:
        record["expired"] = True
        last = printable(f"{result.code} {result.status} {result.description}".encode())
        record["reason"] = f"554 5.4.7 {timed_out(last)}"
    record = apply_to_result(record, verdict.effects)
    earlier = document.get("results")
    copy = {**document, "results": [*(earlier if isinstance(earlier, list) else ()), record]}
    copy.pop("nextattempt", None)
    copy.pop("delayed", None)
    if verdict.at is not None:
        source = result.facts.get("from") if verdict.same_source else None
        copy["nextattempt"] = {"time": format_time(verdict.at)} | ({"ip": source} if source else {})
        copy["nextattempt"] |= {"reason": verdict.why} if verdict.why else {}
    return apply_to_document(copy, verdict.effects, sources)


def _classified(classification: Classification) -> Document:
    return {
        "class": classification.number,
        "class_name": classification.name,
        "category": str(classification.category),
        "about": str(classification.about),
        "rule": classification.rule,
    }


def report(
    document: Document,
    verdict: Verdict,
    names: Names,
    consumed: Consumed,
    override: Queues | None,
    *,
    message_id: str | None,
    extracted: Document | None,
) -> Iterator[Publication]:
    """Yield the publications that tell result consumers, to the exchange or to the job's own queues.

    `message_id` is what they know the job by: its identity, if it is a job.
    """
    queues = names.queues_of(verdict.outcome)
    final = verdict.outcome is not Outcome.RETRY
    body = orjson.dumps(public(document, extracted))
    priority = consumed.priority if names.priorities else None
    encoding = None
    if names.gzip and len(body) >= names.gzip:
        body, encoding = gzip.compress(body, 1), "gzip"
    publication = partial(_publication, body, encoding, message_id, consumed, final=final, priority=priority)
    own = {name: getattr(override, name) for name in queues if name in override.model_fields_set} if override else None
    if not own:
        mandatory = any(queues.values())
        yield publication(names.exchange, verdict.routing_key, mandatory=mandatory)
        return
    others = [queue for name, queue in queues.items() if queue and name not in own]
    exchange = Fallback(names.exchange, verdict.routing_key, any(queues.values()))
    publications: dict[str, Publication] = {}
    for name, queue in own.items():
        if queue and queue not in others:
            # Beside a configured queue that has the result, the exchange would tell it there twice.
            fallback = Fallback("", queues[name], mandatory=True) if others and queues[name] else exchange
            publications[queue] = publication("", queue)._replace(fallback=fallback)
    yield from publications.values()
    for queue in dict.fromkeys(others):
        yield publication("", queue)
    if names.events:  # the exchange does not tell it; the queue may not exist yet
        yield publication("", names.events, mandatory=False)


def held_back(
    job: Job, until: datetime, later: Delayed, names: Names, consumed: Consumed, now: datetime
) -> Iterator[Publication]:
    """Yield the publications that tell of a job which traffic limits hold back before an attempt.

    The words are those of SparkPost's delays. The record stands in what consumers get, not in the job itself.
    """
    record = {"state": "process", "result": "error", "time": format_time(now), "attempt": job.attempt, "code": 451}
    record |= {"status": "4.3.0", "description": f"[internal] {HELD[later.cause]}: {later.reason}"}
    record["delayed"] = str(later.cause)
    nextattempt = {"time": format_time(until), "reason": str(later.cause)}
    earlier = job.document.get("results")
    results = [*(earlier if isinstance(earlier, list) else ()), record]
    document = {**job.document, "results": results, "nextattempt": nextattempt, "seen": format_time(job.seen or now)}
    verdict = Verdict(Outcome.RETRY, until, why=str(later.cause))
    return report(document, verdict, names, consumed, job.queues, message_id=job.identity, extracted=None)


def delay(
    job: Job, until: datetime, names: Names, consumed: Consumed, now: datetime, provenance: Provenance
) -> Publication:
    """Return the publication for a job that the traffic limits send away until `until`, no attempt made."""
    pin = job.nextattempt.ip if job.nextattempt else None
    due = until if job.due is None else max(until, job.due)  # it may be away for less than it has to wait
    nextattempt = {"time": format_time(due)} | ({"ip": pin} if pin else {})
    document = {**job.document, "nextattempt": nextattempt, "seen": format_time(job.seen or now)}
    return until_due(job, document, until, names, consumed, now, provenance._replace(returned=True))


def until_due(
    job: Job,
    document: Document,
    until: datetime,
    names: Names,
    consumed: Consumed,
    now: datetime,
    provenance: Provenance,
) -> Publication:
    """Return the publication that sends a job on its way back to the outbox, to be there at `until`.

    One hop may end before that: then the job is delayed again. It keeps its identity and its mark on the way; the
    header that says so is yet to be signed (`provenance.Outbox.signed`).
    """
    body = orjson.dumps(document)
    zipped = consumed.zipped
    return Publication(
        "",
        f"{names.outbox}.delay.{delay_step((until - now).total_seconds())}",
        gzip.compress(body, 1) if zipped else body,
        message_id=job.identity,
        content_encoding="gzip" if zipped else None,
        priority=(consumed.priority if job.priority is None else job.priority) if names.priorities else None,
        application=application(consumed),
        headers={**passed_on(consumed.headers), **same_rounds(consumed.headers), HEADER: provenance},
    )


def poison(
    consumed: Consumed,
    reason: str,
    names: Names,
    now: datetime,
    *,
    state: str,
    exception: str | None,
    provenance: Provenance,
) -> Publication:
    """Return the publication that puts a message aside, octets untouched, with the time and the reason."""
    headers = {
        **passed_on(consumed.headers),
        **same_rounds(consumed.headers),
        HEADER: provenance,
        "x-mailq-reason": reason[:500],
        "x-mailq-state": str(state),
        "x-mailq-time": format_time(now),
        "x-mailq-delivery-count": consumed.delivery_count,
    }
    if exception is not None:
        headers["x-mailq-exception"] = exception[:500]
    return Publication(
        "",
        names.poison,
        consumed.body,
        message_id=consumed.message_id,
        content_type=None,
        content_encoding=consumed.content_encoding,
        headers=headers,
        application=application(consumed),
    )


def poison_event(consumed: Consumed, reason: str, names: Names, now: datetime, *, exception: str | None) -> Publication:
    """Return the publication that tells webhooks of a message put aside; its body may be anything and is not read."""
    record = {"state": "process", "result": "error", "time": format_time(now), "attempt": 1, "code": 554}
    record |= {"status": "5.3.0", "description": f"put into queue {names.poison}: {reason[:500]}"}
    record |= {"bug": exception[:500]} if exception is not None else {}
    identity = consumed.message_id or hashlib.blake2b(consumed.body, digest_size=16).hexdigest()
    body = orjson.dumps({"results": [record]})
    return _publication(body, None, identity, consumed, "", names.events, final=True, priority=None, mandatory=False)


def public(document: Document, extracted: Document | None) -> Document:
    """Return the document as result consumers get it: no message unless asked for, no secret ever."""
    copy = dict(document)
    if not means_true(copy.get("keepmime", False)):
        copy.pop("mime", None)
    if "smarthost" in copy:
        copy["smarthost"] = _without_password(copy["smarthost"])
    if "dkim" in copy:
        copy["dkim"] = _without_keys(copy["dkim"])
    if found := _extracted(document, extracted):
        copy["extracted"] = found
    return copy


def _extracted(document: Document, extracted: Document | None) -> Document:
    """Return `extracted` as MailerQ has it; an attempt that ended before it read the header left that to be done here.

    Only the part of the message that `extract` looks at is made ready for it.
    """
    mime = document.get("mime")
    if extracted is None and isinstance(mime, str):
        extracted = extract(normalize(without_mark(mime[: MAX_HEADER + SHORT])))
    found = dict(extracted or ())
    for name in ("envelope", "recipient"):
        address = document.get(name)
        local, at, domain = address.strip().strip("<>").rpartition("@") if isinstance(address, str) else ("", "", "")
        if at:
            found[name] = {"local": local, "domain": domain}
    return found


def _without_password(smarthost: object) -> object:
    """Return a smarthost to be shown; one out of form may hold a password anywhere."""
    if isinstance(smarthost, dict):
        return {name: value for name, value in smarthost.items() if name != "password"}
    return smarthost if smarthost in ("", [], None) else None


def _without_keys(dkim: object) -> object:
    if isinstance(dkim, list):
        return [_without_keys(entry) for entry in dkim]
    return {name: value for name, value in dkim.items() if name != "key"} if isinstance(dkim, dict) else None


def _publication(
    body: bytes,
    encoding: str | None,
    message_id: str | None,
    consumed: Consumed,
    exchange: str,
    key: str,
    *,
    final: bool,
    priority: int | None,
    mandatory: bool = True,
) -> Publication:
    return Publication(
        exchange,
        key,
        body,
        message_id=message_id,
        content_encoding=encoding,
        priority=priority,
        headers=result_headers(consumed.headers, final=final),
        mandatory=mandatory,
        application=application(consumed),
    )
