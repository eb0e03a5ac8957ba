"""Torture: a real broker, real worker processes, a receiver that writes down all it takes, and disasters.

`plan` says what happens when (seeded), `disasters` does it to the `world`, `show` runs the whole,
`books` compares afterwards what was published, taken and told, and `report` prints it. Nothing here is
used in production.
"""


class TortureError(Exception):
    """The torture could not go on; says what was being waited for, or which server failed."""
