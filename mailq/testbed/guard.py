"""A guard around a process: it ends with whoever started it, however that one ends.

A small shell starts the command and reads its own standard input, a pipe whose other end only the
starter holds. When that end is closed, by the starter or because the starter is gone, even by SIGKILL, the
command gets SIGTERM. The guard ends with the command and has its exit status; killing the guard's
process group ends both at once.
"""

_SCRIPT = """
exec 3<&0 </dev/null
"$@" 3<&- & command=$!
{ read -r _ <&3; kill -TERM $command; } 2>/dev/null & guard=$!
wait $command; status=$?
kill $guard 2>/dev/null
exit $status
"""


def guarded(*command: str) -> tuple[str, ...]:
    """Return what to run instead of `command`, with a pipe as standard input and in a session of its own."""
    return ("/bin/sh", "-c", _SCRIPT, "guard", *command)
