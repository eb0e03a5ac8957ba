"""A real process that does what a test tells it: evaluates one line of Python after the other until it is killed."""

import ast
import signal
import subprocess
import sys
from typing import Any


class Puppet:
    """Runs `code`, which reads lines from standard input, evaluates them and prints what each comes to.

    Called with a line it answers; with `ask` and `hear` several processes work at the same time.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        words = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return ast.literal_eval(self.process.stdout.readline())

    def __call__(self, line: str) -> Any:
        self.ask(line)
        return self.hear()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it and close the pipes to it."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
