"""What all tables of the configuration have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)
