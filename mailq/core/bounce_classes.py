"""Bounce classes, their categories, and what a reply is about. Pure."""

from enum import StrEnum
from typing import NamedTuple


class Category(StrEnum):
    """What a sender has to do about it: forget the address, wait, mend something, or look closer."""

    HARD = "hard"
    SOFT = "soft"
    BLOCK = "block"
    ADMIN = "admin"
    UNDETERMINED = "undetermined"


class About(StrEnum):
    """What the trouble lies with; `source` is the sending address, `relay` the server spoken to."""

    RECIPIENT = "recipient"
    DOMAIN = "domain"
    MESSAGE = "message"
    SENDER = "sender"
    SOURCE = "source"
    RELAY = "relay"
    POLICY = "policy"
    US = "us"


class BounceClass(NamedTuple):
    """A class by its number: its name, its category, and what it is about unless a rule knows better."""

    name: str
    category: Category
    about: About | None


CLASSES: dict[int, BounceClass] = {
    1: BounceClass("Undetermined", Category.UNDETERMINED, None),
    10: BounceClass("Invalid Recipient", Category.HARD, About.RECIPIENT),
    20: BounceClass("Soft Bounce", Category.SOFT, None),
    21: BounceClass("DNS Failure", Category.SOFT, About.DOMAIN),
    22: BounceClass("Mailbox Full", Category.SOFT, About.RECIPIENT),
    23: BounceClass("Too Large", Category.SOFT, About.MESSAGE),
    24: BounceClass("Timeout", Category.SOFT, About.RELAY),
    25: BounceClass("Admin Failure", Category.ADMIN, About.US),
    30: BounceClass("Generic Bounce: No RCPT", Category.HARD, About.RECIPIENT),
    40: BounceClass("Generic Bounce", Category.SOFT, None),
    50: BounceClass("Mail Block", Category.BLOCK, About.POLICY),
    51: BounceClass("Spam Block", Category.BLOCK, About.SOURCE),
    52: BounceClass("Spam Content", Category.BLOCK, About.MESSAGE),
    53: BounceClass("Prohibited Attachment", Category.BLOCK, About.MESSAGE),
    54: BounceClass("Relaying Denied", Category.BLOCK, About.RELAY),
    60: BounceClass("Auto-Reply", Category.SOFT, About.RECIPIENT),
    70: BounceClass("Transient Failure", Category.SOFT, None),
    100: BounceClass("Challenge-Response", Category.SOFT, About.RECIPIENT),
}
"""SparkPost's classes that an SMTP answer can come to; a class without an `about` takes it from the state."""


LOGIN = 25
"""The class of trouble with a login, as with all that the sender has to set right at home."""


TRANSIENT = frozenset({70})
"""Classes that pass, as their names say: what is taken for one of them is tried again, whatever the code."""
