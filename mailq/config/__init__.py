"""The configuration: one frozen pydantic model per table of `mailq.toml`.

Descriptions here are the documentation: `mailq example-config` and `etc/mailq.toml` are made of
them. Unknown keys are refused.
"""

import ipaddress
from typing import Self

from pydantic import Field, field_validator, model_validator

from mailq.config.base import Section
from mailq.config.classify import ClassificationConfig
from mailq.config.delivery import DeliveryConfig, SmarthostConfig, SourceConfig, TimeoutsConfig, TlsConfig
from mailq.config.dns import DnsConfig
from mailq.config.journal import JournalConfig
from mailq.config.limits import LimitConfig
from mailq.config.message import MessageConfig
from mailq.config.operations import HttpConfig, LogConfig, WorkerConfig
from mailq.config.patterns import PatternTables
from mailq.config.rabbitmq import RabbitConfig
from mailq.config.results import ResultsConfig
from mailq.config.webhooks import WebhooksConfig

__all__ = ["Config"]


class Config(Section):
    """Everything that can be configured; the defaults run as they stand."""

    rabbitmq: RabbitConfig = Field(default_factory=RabbitConfig)
    worker: WorkerConfig = Field(default_factory=WorkerConfig)
    journal: JournalConfig = Field(default_factory=JournalConfig)
    delivery: DeliveryConfig = Field(default_factory=DeliveryConfig)
    message: MessageConfig = Field(default_factory=MessageConfig)
    timeouts: TimeoutsConfig = Field(default_factory=TimeoutsConfig)
    tls: TlsConfig = Field(default_factory=TlsConfig)
    smarthost: SmarthostConfig = Field(default_factory=SmarthostConfig)
    dns: DnsConfig = Field(default_factory=DnsConfig)
    sources: tuple[SourceConfig, ...] = Field(
        (), description="Local addresses to send from; without any the system chooses."
    )
    limits: tuple[LimitConfig, ...] = Field(
        (),
        description="How much at once and how fast. For each key the most specific table decides: domain before mx,"
        " mx before source, source before pool. By default 20 connections from a source to a site, and no rate.",
    )
    classification: ClassificationConfig = Field(default_factory=ClassificationConfig)
    patterns: PatternTables = Field((), description="What an answer means, where it means something else than it says.")
    results: ResultsConfig = Field(default_factory=ResultsConfig)
    webhooks: WebhooksConfig = Field(default_factory=WebhooksConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        ips = [ipaddress.ip_address(source.ip) for source in sources]
        twice = next((ip for ip in ips if ips.count(ip) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is there twice")
        return sources

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.delivery.unique_for and not self.worker.journal_dir:
            raise ValueError("delivery.unique_for needs worker.journal_dir, where ids are remembered")
        return self
