"""What the last attempt of a job was taken for, as its result tells: an expired job is classified by that. Pure.

Results come back through strangers' hands and may be of other programs, so nothing in them is trusted unseen. What
says of itself what it was taken for is taken for the same again; else it is classified by what it says happened.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, ValidationError, model_validator

from mailq.core.answers.classify import Classification, Ruleset
from mailq.core.bounce_classes import CLASSES, About, Category
from mailq.core.states import Kind, State


class Classified(NamedTuple):
    """What an attempt was taken for, and by which version of the rules."""

    classification: Classification
    ruleset: str


class _Earlier(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    code: int = Field(ge=400, le=599)


class _Told(_Earlier):
    """What a result says that it was taken for."""

    number: StrictInt = Field(alias="class")
    category: Category
    about: About
    rule: Annotated[str, StringConstraints(pattern=r"^[a-z0-9./-]{1,100}$")]
    ruleset: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,1000}$")] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.number not in CLASSES or CLASSES[self.number].category is not self.category:
            raise ValueError("is no class, or one of another category")
        if self.category is Category.HARD and self.code // 100 == 4:
            raise ValueError("is hard, which no transient answer is")
        return self


class _Ended(_Earlier):
    """What a result says that happened; where it does not say where, some server it was."""

    state: State = State.INTRO
    kind: Kind = Field(Kind.ERROR, alias="result")
    status: Annotated[str, StringConstraints(pattern=r"^([245]\.[0-9]{1,3}\.[0-9]{1,3})?$")] = ""
    description: str = ""
    mta: str | None = None


def last_class(result: Mapping[str, Any], ruleset: Ruleset) -> Classified | None:
    """Return what a job's last result was taken for; None where it tells of no failure that could be read."""
    try:
        told = _Told.model_validate(result)
    except ValidationError:
        return _classified(result, ruleset)
    name = CLASSES[told.number].name
    classification = Classification(told.number, name, told.category, told.about, told.rule)
    return Classified(classification, told.ruleset or ruleset.version)


def _classified(result: Mapping[str, Any], ruleset: Ruleset) -> Classified | None:
    try:
        ended = _Ended.model_validate(result)
    except ValidationError:
        return None
    classification = ruleset.classify(
        state=ended.state,
        kind=ended.kind,
        code=ended.code,
        status=f"{ended.code // 100}{ended.status[1:] or '.0.0'}",  # which is right where they disagree, RFC 3463
        text=ended.description,
        hosts=(ended.mta,) if ended.mta else (),
    )
    return Classified(classification, ruleset.version)
