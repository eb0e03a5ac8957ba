"""Table `rabbitmq`: the broker, its exchange and queues."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

from mailq.config.base import Section
from mailq.config.checks import AmqpUrl


class RabbitConfig(Section):
    """Broker, exchange and queues. An empty queue name means: no such queue."""

    url: AmqpUrl = Field(
        SecretStr("amqp://guest:guest@127.0.0.1:5672/"),
        description="amqp:// or amqps:// address with user, password and virtual host.",
    )
    declare: bool = Field(
        True, description="Declare the exchange and queues that are missing; false only checks that they exist."
    )
    declare_job_queues: bool = Field(
        False,
        description="Declare a queue that a job names in `queues` and that does not exist; false refuses the job.",
    )
    job_queues: tuple[Annotated[str, StringConstraints(min_length=1, max_length=255)], ...] = Field(
        (), description="Beginnings of the names that the `queues` of jobs are held to; empty: any but mailq's own."
    )
    queue_type: Literal["quorum", "classic"] = Field(
        "quorum",
        description="Type of the queues that mailq declares; quorum survives a lost node and counts deliveries.",
    )
    arguments: bool = Field(
        True,
        description="Declare outbox and result queues with arguments; false declares them plain and durable, as clients"
        " that declare them themselves do. Queues that exist are used as they are, either way.",
    )
    exchange: str = Field("mailq", min_length=1, description="Topic exchange that every result is published to.")
    outbox: str = Field("outbox", min_length=1, description="Queue of the jobs to deliver.")
    poison: str = Field("outbox.poison", min_length=1, description="Queue for what cannot be processed.")
    results: str = Field("results", description="Queue for every final result.")
    success: str = Field("success", description="Queue for the results of delivered jobs.")
    failures: str = Field("failures", description="Queue for the results of jobs given up.")
    retry: str = Field("retry", description="Queue for a copy of each result that is not final.")
    delivery_limit: int = Field(20, ge=1, description="Redeliveries after which the broker moves a job to poison.")
    priorities: bool = Field(
        False,
        description="Write the AMQP priority of a job on its retries, delays and results. Off, so that no class of jobs"
        " starves another: RabbitMQ 4.3 gives out a lower priority only when no higher one waits, and 4.0 to 4.2 return"
        " delayed jobs too late where priorities are mixed.",
    )
    heartbeat: int = Field(30, ge=0, le=3600, description="Seconds between AMQP heartbeats; 0 turns them off.")
    connect_timeout: float = Field(10, gt=0, description="Seconds to connect and log in.")
    confirm_timeout: float = Field(
        60, gt=0, description="Seconds to wait for a publisher confirm before the connection counts as lost."
    )
    reconnect_delay: float = Field(
        1, gt=0, description="Seconds before the first reconnect; doubles up to reconnect_max."
    )
    reconnect_max: float = Field(30, gt=0, description="Longest pause between reconnects in seconds.")
    ca_file: str = Field("", description="CA certificates (PEM) for amqps://; empty: those of the system.")

    header_secret: SecretStr = Field(
        SecretStr(""),
        description="Authenticates the header `x-mailq-publication`, by which mailq knows what it sent back to the"
        " outbox; empty: the password of url. It must be the same for all workers of an outbox and for `mailq poison`."
        " After a change, jobs that wait in delay queues count as new publications: a copy of one is sent once more,"
        " and none is lost.",
    )

    @property
    def weakness(self) -> str | None:
        """Why nothing should run like this for long; None where all is well."""
        if not self.arguments:
            return (
                "plain queues (rabbitmq.arguments = false) have no replica, no delivery limit and no way to poison,"
                " unless policies say so"
            )
        if self.queue_type == "quorum":
            return None
        return "classic queues count no deliveries: a job that ends workers, or meets a bug, comes again for ever"

    @property
    def remedy(self) -> str:
        """The setting that ends a `weakness`."""
        return 'rabbitmq.queue_type = "quorum"' if self.arguments else "rabbitmq.arguments = true"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.outbox == self.poison:
            raise ValueError(f'outbox and poison are one queue "{self.outbox}"; they must differ')
        taken = {self.outbox: "outbox", self.poison: "poison"}
        for key in ("results", "success", "failures", "retry"):
            if other := taken.get(getattr(self, key)):
                raise ValueError(f'{key} and {other} are one queue "{getattr(self, key)}"; results would be jobs again')
        if self.reconnect_delay > self.reconnect_max:
            raise ValueError("reconnect_delay is greater than reconnect_max")
        return self
