"""Table `message`: what becomes of messages that may not go out as they are."""

from typing import Literal

from pydantic import Field

from mailq.config.base import Section

Choice = Literal["mend", "send", "fail"]


class MessageConfig(Section):
    """Messages that break a rule: mended, which a result's warnings tell, sent as they are, or refused."""

    byte_order_mark: Choice = Field("mend", description="A byte order mark before the header: mend removes it.")
    nul: Choice = Field("mend", description="NUL octets: mend removes them.")
    long_lines: Choice = Field(
        "mend",
        description="Lines over 998 octets (RFC 5322): mend encodes parts as quoted-printable or base64, folds fields.",
    )
    eight_bit_body: Choice = Field(
        "mend",
        description="8-bit bodies to a server without 8BITMIME (RFC 6152): mend encodes parts as quoted-printable or"
        " base64; what cannot be encoded fails, if no other server of the destination takes it.",
    )
    eight_bit_header: Choice = Field(
        "mend",
        description="8-bit headers to a server without SMTPUTF8 (RFC 6531): mend encodes fields (RFC 2047, RFC 2231);"
        " what cannot be encoded fails, if no other server of the destination takes it.",
    )
    signed: Literal["keep", "mend"] = Field(
        "keep",
        description="Messages with a DKIM or S/MIME signature: keep changes nothing that a signature covers, so they"
        " are sent as they are, but 8-bit bodies fail where 8BITMIME is missing; mend breaks the signature.",
    )
