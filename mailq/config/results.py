"""Table `results`: what results tell."""

from typing import Literal

from pydantic import Field

from mailq.config.base import Section


class ResultsConfig(Section):
    """What results tell; the journal keeps everything."""

    certificates: Literal["full", "summary", "none"] = Field(
        "full",
        description="Of the servers' certificates: everything; or fingerprint, expiry, the common names, and whether"
        " it holds; or nothing. A whole one makes a result about 1 kB larger.",
    )
    delays: bool = Field(
        False,
        description="Tell queue retry of a job that limits, pauses or a refused login hold back, once before each"
        " attempt, as 451 4.3.0 with the property delayed.",
    )
    gzip: int = Field(
        0,
        ge=0,
        description="Octets from which a result is published as gzip, told by content_encoding; 0: no result is.",
    )
