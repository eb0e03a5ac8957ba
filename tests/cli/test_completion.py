"""The two names of the program, and tab completion for both: the shells' own protocol, and bash itself."""

import os
import subprocess
import sys

import pytest

from mailq.cli import COMMANDS
from mailq.cli.naming import NAMES

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "120"}
PROGRAM = f"#!{sys.executable}\nfrom mailq.cli import main\nmain()\n"
LINES = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.fixture
def run(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text(PROGRAM)
        (tmp_path / name).chmod(0o755)
    environ = ENVIRON | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def command(*words, **variables):
        done = subprocess.run(
            words, env=environ | variables, capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return command


@pytest.mark.parametrize("name", NAMES)
def test_help_says_the_name_that_the_program_was_called_by(run, name):
    for words, example in ((), "demo"), (("send",), "send -c"), (("webhooks", "dead"), "webhooks dead drop"):
        shown = run(name, *words, "--help")
        assert f"Usage: {' '.join((name, *words))} [OPTIONS]" in shown
        assert f" {name} {example}" in shown
        other = next(each for each in NAMES if each != name)
        assert f" {other} {example}" not in shown


@pytest.mark.parametrize("shell", LINES)
@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_are_completed(run, name, shell):
    asked = f"_{name.upper()}_COMPLETE"
    assert name in run(name, **{asked: f"source_{shell}"})

    def completed(line):
        return run(name, **{asked: f"complete_{shell}"}, **LINES[shell](line))

    found = completed(f"{name} s")
    assert [each for each in COMMANDS if each in found] == ["send", "sink", "schemas"]
    assert "--take" in completed(f"{name} watch --t")


def test_bash_completes_with_the_script(run):
    script = run("mailqctl", _MAILQCTL_COMPLETE="source_bash")
    asks = 'COMP_WORDS=(mailqctl pois); COMP_CWORD=1; _mailqctl_completion mailqctl; echo "${COMPREPLY[*]}"'
    assert run("bash", "-c", f"{script}\n{asks}") == "poison\n"
