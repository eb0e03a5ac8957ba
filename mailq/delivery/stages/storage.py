"""State storage: get the message of a job, ready to send."""

from mailq.core.content.conformance import MessageRules, prepare
from mailq.core.content.mime import Content
from mailq.core.jobs.job import Job
from mailq.core.results.result import Trail
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State


def content(job: Job, trail: Trail, limit: int, rules: MessageRules) -> Content:
    """Return the message of the job, at most `limit` octets with CRLF line endings; `trail` gets the warnings.

    Raises:
        Failure: the job has no message, the message is too large, or the rules refuse it.
    """
    if not isinstance(job.mime, str) or not job.mime:
        raise Failure(State.STORAGE, Kind.ERROR, pointer="/mime")
    octets, warnings = prepare(job.mime, rules)
    if warnings:
        trail.warnings += warnings
    message = Content(octets)
    if message.size > limit:
        text = f"message of {message.size} octets is larger than delivery.max_message_size, {limit}"
        raise Failure(State.PROCESS, Kind.INVALID, text, code=552, status="5.3.4", pointer="/mime")
    return message
