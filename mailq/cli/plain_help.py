"""Commands and groups whose --help names no type where there is nothing to know: of flags, and of arguments.

typer writes `<bool>` beside each flag and `<list[str]>` beside each argument. A flag takes no value; what an argument
is stands in its name and its text.
"""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup


class PlainCommand(TyperCommand):
    """A command with plain help."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer names no public type for it
        """Return the parameters, without types that say nothing."""
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group with plain help."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - as above
        """Return the parameters, without types that say nothing."""
        return _plain(super().get_params(ctx))


def _plain(params: Sequence[Any]) -> list[Any]:
    for each in params:
        if getattr(each, "is_flag", False):
            each.metavar = ""
        elif isinstance(each, TyperArgument) and not each.type_descriptor.is_choice:
            each.display_type_rich = _nothing  # type: ignore[method-assign]  # of this one argument
    return list(params)


def _nothing(ctx: Any) -> str:  # noqa: ANN401, ARG001 - as above
    return ""
