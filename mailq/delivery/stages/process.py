"""State process: decide whether a job may be attempted, and from which source addresses."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime

from mailq.core.answers.deadline import RetryPolicy, expired, expiry
from mailq.core.jobs.job import Job
from mailq.core.smtp.failure import Failure
from mailq.core.states import Kind, State
from mailq.core.traffic.routes import Source
from mailq.ports.host import Sources


def sources(job: Job, policy: RetryPolicy, usable: Sources, now: datetime) -> Sequence[Source]:
    """Return the sources that the job may leave from: its `ips`, else those of its `pool`, as with MailerQ.

    Raises:
        Failure: the job expired while it waited, names an invalid address, or no source address of
            this host may be used.
    """
    if expired(job, policy, now):
        raise expiry(job)
    for place, ip in enumerate(job.ips or ()):
        if not _is_address(ip):
            raise Failure(State.PROCESS, Kind.INVALID, "is not an IP address", pointer=f"/ips/{place}")
    pool = job.pool if job.ips is None else None
    if pool is not None and pool not in usable.pools:
        known = ", ".join(sorted(usable.pools)) or "none"
        text = f"pool {pool!r} is not configured (pools of this worker: {known})"
        raise Failure(State.PROCESS, Kind.INVALID, text, pointer="/pool")
    found = usable.usable(job.ips, pool)
    if not found:
        pointer = "/ips" if job.ips is not None else "/pool" if pool is not None else None
        raise Failure(State.PROCESS, Kind.ERROR, "none of the source addresses exists on this host", pointer=pointer)
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a scope (RFC 4007) may hold any character
