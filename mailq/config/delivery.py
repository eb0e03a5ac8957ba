"""Tables `delivery`, `timeouts`, `tls`, `smarthost` and `sources`: how mail is sent."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from mailq.config.base import Section
from mailq.config.checks import (
    EhloName,
    Fingerprint,
    HostName,
    IpAddress,
    PoolName,
    Schedule,
    Seconds,
    SinkAddress,
    SmarthostName,
)


class DeliveryConfig(Section):
    """What is tried, how often and how long."""

    port: int = Field(25, ge=1, le=65535, description="Port of the MX hosts.")
    sink: SinkAddress = Field(
        "", description='"host:port": connect there instead of to the real target, all else as configured.'
    )
    ehlo: EhloName = Field("", description="EHLO name of sources without one; empty: this host's full name.")
    ip_family: Literal["any", "ipv4", "ipv6"] = Field("any", description="Address families to connect to.")
    max_targets: int = Field(5, ge=1, le=100, description="Addresses tried in one attempt at most.")
    max_message_size: int = Field(
        50 * 1024 * 1024, ge=1024, description="Largest message in octets that is accepted from a producer."
    )
    strict: bool = Field(
        False,
        description="Refuse jobs with a property out of form; false: what has a plain meaning is taken, as a number in"
        " text, and `warnings` of the result tell it.",
    )
    retries: Schedule = Field(
        (600, 600, 1800, 1800, 3600, 3600, 7200),
        min_length=1,
        description="Seconds between attempts; the last repeats. Or a formula in n, the attempts made:"
        ' "5*2^n" is 10, 20, 40 and so on.',
    )
    retry_jitter: float = Field(0.01, ge=0, le=0.5, description="Largest share by which a wait is lengthened.")
    max_deliver_time: Seconds = Field(86_400, description="Seconds from first consumption to giving up.")
    max_attempts: int = Field(0, ge=0, description="Attempts until giving up; 0: no limit.")
    on_doubt: Literal["retry", "fail"] = Field(
        "retry",
        description="What becomes of a message that may have arrived, since the connection or the worker ended between"
        " the final dot and its answer: sent again, perhaps twice, or given up. A job's own on_doubt comes first.",
    )
    unique_for: int = Field(
        0,
        ge=0,
        le=31_536_000,
        description="Seconds within which a second publication of an id (message_id, else `id`) is not delivered: a"
        " failure with `duplicate` is published for it. The processes of a host share it, in worker.journal_dir; 0:"
        " each publication is delivered.",
    )
    doubt_attempts: int = Field(
        3,
        ge=0,
        description="Attempts that leave it open whether the message arrived, until it is given up; 0: no limit. Each"
        " may bring the recipient one more copy.",
    )
    greylist_retry: int = Field(
        300,
        ge=0,
        le=86_400,
        description="Seconds until a greylisted message is tried again, if the schedule says later; 0: as it says.",
    )
    hint_min: int = Field(60, ge=1, le=86_400, description="Least seconds waited where the server names a time.")
    hint_max: int = Field(
        7200, ge=0, le=86_400, description="Most seconds waited where the server names a time; 0: it is not looked at."
    )
    attempt_timeout: float = Field(
        1500, gt=0, le=1740, description="Seconds for one whole attempt; below RabbitMQ's consumer timeout of 30 min."
    )

    @model_validator(mode="after")
    def _hints(self) -> Self:
        if self.hint_max and self.hint_min > self.hint_max:
            raise ValueError("hint_min is more than hint_max")
        return self


class TimeoutsConfig(Section):
    """Seconds to wait in each state; RFC 5321 section 4.5.3.2 where it has a figure."""

    dns: float = Field(60, gt=0, description="Resolving the domain and its MX hosts.")
    connect: float = Field(30, gt=0, description="Setting up the TCP connection.")
    intro: float = Field(300, gt=0, description="The 220 greeting.")
    ehlo: float = Field(300, gt=0, description="The answer to EHLO.")
    helo: float = Field(300, gt=0, description="The answer to HELO.")
    starttls: float = Field(60, gt=0, description="The answer to STARTTLS and the TLS handshake.")
    auth: float = Field(60, gt=0, description="Each answer while logging in.")
    mailfrom: float = Field(300, gt=0, description="The answer to MAIL FROM.")
    rcptto: float = Field(300, gt=0, description="The answer to RCPT TO.")
    data: float = Field(120, gt=0, description="The answer to DATA.")
    message: float = Field(600, gt=0, description="Sending the message and the answer to the final dot.")
    quit: float = Field(5, gt=0, description="The answer to QUIT; nothing depends on it.")


class TlsConfig(Section):
    """STARTTLS towards receivers."""

    mode: Literal["opportunistic", "required", "none"] = Field(
        "opportunistic", description="opportunistic: when offered; required: never without; none: never."
    )
    retry_plaintext: bool = Field(
        True, description="After a failed handshake go on without TLS (opportunistic only, never with a login)."
    )
    min_version: Literal["1.0", "1.1", "1.2", "1.3"] = Field(
        "1.0", description="Oldest TLS version; for opportunistic use any encryption beats none."
    )
    ca_file: str = Field("", description="CA certificates (PEM) to verify with; empty: those of the system.")


class SmarthostConfig(Section):
    """Send everything through one server, or only what finds no way otherwise; a job's own smarthost comes first."""

    hostname: SmarthostName = Field("", description="Host name or IP address; empty: deliver to the MX hosts.")
    port: int = Field(25, ge=1, le=65535, description="Port; on 465 TLS comes first.")
    username: str = Field("", description="Log in as this user; empty: no login.")
    password: SecretStr = Field(SecretStr(""), description="With this password.")
    plaintext_auth: bool = Field(False, description="Allow the password to be sent without TLS (any smarthost).")
    verify: Literal["remote", "always", "never"] = Field(
        "remote",
        description="Which servers must prove who they are before a password is sent (any smarthost): the certificate's"
        " chain (tls.ca_file) and host name hold, or its fingerprint is listed. remote: all but localhost and"
        " loopback addresses given as hostname; always: these too; never: none. plaintext_auth switches it off.",
    )
    fingerprints: dict[HostName, tuple[Fingerprint, ...]] = Field(
        {},
        description="Certificates that hold without a CA, by host name of the server: SHA-256 in hex, for a"
        " self-signed one (any smarthost).",
    )
    fallback: bool = Field(
        False,
        description="Use it only after all MX targets ended in something that another server may spare the message,"
        " or the DNS did not tell them for now; never when the message may have been taken.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.fallback and not self.hostname:
            raise ValueError("fallback needs a hostname to fall back to")
        if bool(self.username) != bool(self.password.get_secret_value()):
            raise ValueError("username and password go together; one of them is empty")
        if self.plaintext_auth and self.fingerprints:
            raise ValueError("plaintext_auth sends passwords to any server; take it out, or the fingerprints")
        return self


class SourceConfig(Section):
    """One local address to send from."""

    ip: IpAddress = Field(description="IP address that exists on this host.")
    ehlo: EhloName = Field("", description="EHLO name, best the address's reverse DNS; empty: delivery.ehlo.")
    pool: PoolName | None = Field(
        None, description="Name of the pool that it belongs to: jobs ask for pools, limits can hold for one."
    )
