"""Tables `worker`, `http` and `log`: running it."""

from typing import Literal

from pydantic import Field

from mailq.config.base import Section


class WorkerConfig(Section):
    """The worker processes; figures are for each of them."""

    processes: int = Field(
        0, ge=0, le=256, description="Processes of `mailq run`; 0: one for each core that it may use."
    )
    prefetch: int = Field(500, ge=1, le=65535, description="Jobs taken from the outbox and not yet settled.")
    max_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1,
        description="Octets of jobs in memory, gzip undone; above that no more are received for a while. With the"
        " copies that are made on the way to the wire, memory grows by up to three times as much.",
    )
    max_values: int = Field(
        200_000,
        ge=1000,
        le=10_000_000,
        description="Values that a job may hold beside its results: texts, numbers, objects, and lists, each name of a"
        " property counted too. A value takes up to 128 octets of memory, which count among max_bytes.",
    )
    sessions: int = Field(1000, ge=1, description="SMTP connections open at once, idle ones among them.")
    drain_timeout: float = Field(30, ge=0, description="Seconds that SIGTERM gives to what is on the wire.")
    journal_dir: str = Field(
        "journal",
        description="Directory of the journals and of the limits' counts, on a local disk, shared by all processes of"
        " the host; a relative one is under the working directory. It is made with mode 0700. Empty: no journal is"
        " kept, and a job whose worker died after its message was accepted is sent again.",
    )
    poison_after: int = Field(
        3,
        ge=1,
        le=1000,
        description="Attempts that met a bug of mailq, or deliveries that ended a process, until a job is put aside"
        " in the poison queue; to be below rabbitmq.delivery_limit.",
    )
    stalled_after: float = Field(
        60, gt=0, description="Seconds without a delivery, jobs waiting, until the stalled alarm is raised."
    )


class HttpConfig(Section):
    """The port for /metrics, /healthz and /readyz."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(9125, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    enabled: bool = Field(True, description="Serve metrics and health at all.")


class LogConfig(Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is written.")
    format: Literal["json", "console"] = Field("json", description="One JSON object a line, or for people.")
    attempts: bool = Field(True, description="Write one line per attempt.")
