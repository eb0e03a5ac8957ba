"""Table `journal`: what is remembered of messages that were handed over."""

from typing import Literal

from pydantic import Field

from mailq.config.base import Section


class JournalConfig(Section):
    """The journals in `worker.journal_dir`; figures are for each worker process."""

    sync: Literal["never", "always"] = Field(
        "never",
        description="Wait for the disk at each record. Without, a journal survives the process but not a power cut.",
    )
    size: int = Field(
        64 * 1024 * 1024,
        ge=256 * 1024,
        le=1024 * 1024 * 1024,
        description="Octets of a journal file; a process has one or two, reserved beforehand. 64 KiB of it are kept"
        " for each message whose final answer is awaited: one file is to have room for all `worker.sessions`.",
    )
    keep: int = Field(
        86_400,
        ge=1,
        description="Seconds for which the journal of a dead process waits for its jobs to come again, since a running"
        " process has seen it.",
    )
