"""State storage: get the message of a job, ready to be sent."""

from mailq.core.failure import Failure
from mailq.core.job import Job
from mailq.core.mime import Content, normalize
from mailq.core.states import Kind, State


def content(job: Job, limit: int) -> Content:
    """Return the message of the job, at most `limit` octets with CRLF line endings.

    Raises:
        Failure: there is none, or it is too large.
    """
    if not isinstance(job.mime, str) or not job.mime:
        raise Failure(State.STORAGE, Kind.ERROR, pointer="/mime")
    message = Content(normalize(job.mime))
    if message.size > limit:
        text = f"message of {message.size} octets is larger than delivery.max_message_size, {limit}"
        raise Failure(State.PROCESS, Kind.INVALID, text, code=552, status="5.3.4", pointer="/mime")
    return message
