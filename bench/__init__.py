"""`python -m bench`: how fast mailq is on this machine, and what a message costs in CPU and memory.

Not part of what is installed. `measure` has the phases, `servers` and `postfix` the processes,
`queues` the broker's side, `usage` what /proc says, `report` the tables; README.md has the methods.
"""


class BenchError(Exception):
    """The figures cannot be had, or would not be true; the text says why."""
