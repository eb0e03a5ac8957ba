"""What --help says of every command, held against what is written: nothing is lost to markup, nothing is noise."""

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from mailq.cli import COMMANDS, build

MARKUP = re.compile(r"(?<!\\)\[/?(?:dim|bold)\]")
BRACKETS = re.compile(r"\[[^\s\]][^\]]*\]")


def commands():
    """Return the words and the command of every command and group, without the program itself."""

    def walk(words, command):
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk([*words, name], inner)

    return [(words, command) for words, command in walk([], typer.main.get_command(build())) if words]


@pytest.fixture(scope="module", params=commands(), ids=lambda each: " ".join(each[0]))
def command(request):
    """Return a command, and what its --help prints in one line."""
    words, command = request.param
    done = CliRunner().invoke(build(words[:1]), [*words, "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert done.exit_code == 0
    return command, re.sub(r"\s+", " ", done.stdout)


def test_brackets_come_out(command):
    written, shown = command
    texts = [written.help or "", *(getattr(each, "help", None) or "" for each in written.params)]
    for text in texts:
        for found in BRACKETS.findall(MARKUP.sub("", text.replace("\\[", "["))):
            assert re.sub(r"\s+", " ", found) in shown, found


def test_no_brackets_twice_and_no_types_that_say_nothing(command):
    _, shown = command
    for noise in ("[[", "]]", "<bool>", "<list[", "...]..."):
        assert noise not in shown


def test_files_are_read_by_the_command_and_not_by_typer(command):
    """typer ends with status 2 where a file cannot be read; a configuration is status 78, and others have words."""
    written, _ = command
    for each in written.params:
        kind = getattr(each, "type_descriptor", None)
        if kind is not None and kind.is_path:
            assert kind.parameter_info.readable is False, each.name


def test_the_overview_has_the_first_sentence_of_each_command():
    for words, written in commands():
        if len(words) == 1:
            first = re.sub(r"\s+", " ", written.help.strip().partition("\n\n")[0])
            assert COMMANDS[words[0]].summary == first


def test_the_overview_imports_no_command():
    code = (
        "import sys; from mailq.cli import main\n"
        "try: main(['--help'])\nfinally: print([each for each in sys.modules if each.startswith('mailq') or each in"
        " ('pydantic', 'aiohttp', 'uvloop', 'cryptography', 'dns')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "'mailq.cli.streams'" in done.stderr
    for heavy in ("pydantic", "aiohttp", "uvloop", "cryptography", "mailq.config", "mailq.cli.run", "mailq.cli.demo"):
        assert f"'{heavy}'" not in done.stderr
