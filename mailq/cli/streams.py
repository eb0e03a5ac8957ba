"""The standard streams of a command: all three open, every character writable, one error for an output that is full.

A parent may leave a stream closed, a disk may be full, and a locale may know fewer characters than the texts have.
Commands write without a thought for these cases; `mailq.cli.main` calls `prepare` first and handles `OutputError`.
"""

import io
import os
import sys

_NOBODY = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""How /dev/null replaces a closed stream: input cannot be read, output cannot be written, complaints go nowhere."""


class OutputError(Exception):
    """Standard output takes nothing, and why. No OSError, because commands expect these of files and sockets."""


class _Output(io.FileIO):
    """Standard output whose failures are known from all others; a reader that has gone is still `BrokenPipeError`."""

    def write(self, data: "bytes | bytearray | memoryview") -> int | None:  # type: ignore[override]  # no buffer type before 3.12
        """Write octets as `io.FileIO` does.

        Raises:
            OutputError: the disk is full, or the stream was closed by the parent.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as trouble:
            raise OutputError(trouble.strerror) from None


def prepare() -> None:
    """Open what the parent left closed, and let standard output take every character and tell its failures."""
    for number, mode in _NOBODY:
        _open(number, mode)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as above
    if sys.stdout is not sys.__stdout__:  # a test looks at what is written
        return
    encoding = "utf-8"
    if sys.stdout is not None:
        sys.stdout.flush()
        encoding = sys.stdout.encoding
    raw = _Output(1, "w", closefd=False)
    buffer = io.BufferedWriter(raw)  # type: ignore[type-var]  # because of the override above
    sys.stdout = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=raw.isatty())


def discard() -> None:
    """Let what is still buffered for standard output go nowhere, so that the interpreter does not fail to write it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _open(number: int, mode: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, mode)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
