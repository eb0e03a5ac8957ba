"""Commands whose standard streams are closed, full, or of a locale that lacks characters: one line, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent.parent / "data" / "replies.toml"
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("MAILQ_", "PYTHON"))}
NOBODY = {"MAILQ_RABBITMQ__URL": "amqp://127.0.0.1:1/", "MAILQ_DNS__OVERRIDES": '{"*": ["127.0.0.1:2525"]}'}
WRITERS = ["version", "--help", "example-config", "classify --corpus " + str(CORPUS), "check", "check --json"]


def shell(words, redirection, **environ):
    """Run the program in a shell that redirects its streams; return status, output and complaints."""
    line = f'exec "$0" -m mailq {words} {redirection}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable],
        capture_output=True, env=ENVIRON | NOBODY | environ, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("words", WRITERS)
def test_an_output_that_takes_nothing_is_one_line_and_status_1(words):
    status, _, err = shell(words, ">/dev/full")
    assert (status, err) == (1, "mailq: cannot write to standard output: No space left on device\n")


def test_a_closed_output_or_input_is_one_line():
    assert shell("version", ">&-") == (1, b"", "mailq: cannot write to standard output: Bad file descriptor\n")
    status, _, err = shell("send -", "<&-")
    assert status == 66
    assert err.startswith("mailq: -: cannot be read: Bad file descriptor")
    assert shell("classify '550 no'", "2>&-")[0] == 0


def test_a_worker_needs_no_output(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "mailq", "run", "-p", "1"]
    environ = ENVIRON | NOBODY | {"MAILQ_HTTP__ENABLED": "false", "MAILQ_WORKER__JOURNAL_DIR": str(tmp_path)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command], env=environ, stderr=file, stdin=subprocess.DEVNULL
        )
    while '"retrying"' not in log.read_text():
        assert process.poll() is None, log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("words", ["torture --help", "classify --corpus " + str(CORPUS), "check"])
def test_characters_that_the_locale_lacks_are_escaped(words):
    status, out, err = shell(words, "", PYTHONIOENCODING="latin-1", COLUMNS="150")
    assert (status, err) == (1 if words == "check" else 0, "")
    assert out
    assert b"Traceback" not in out
