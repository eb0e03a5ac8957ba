"""Files that are shipped with the package."""

from importlib import resources


def bounces() -> str:
    """Return the shipped rules of classification, a text in TOML (see `core.answers.rules`)."""
    return resources.files(__name__).joinpath("bounces.toml").read_text("utf-8")
