"""The command line: what is there, what --help says, which status it ends with."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import mailq
from mailq.cli import COMMANDS, build
from mailq.cli.contracts import documents
from mailq.config import Config
from mailq.config.example import example
from mailq.core.traffic.limits import LimitRule, allowance

ROOT = Path(__file__).parent.parent.parent
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("MAILQ_")} | {"COLUMNS": "160"}


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "mailq", *arguments],
        capture_output=True, text=True, env=ENVIRON, timeout=60, check=False, **options,
    )  # fmt: skip


def test_help_names_every_command_with_a_sentence():
    done = run("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        (line,) = [line for line in done.stdout.splitlines() if line.strip("│ ").startswith(f"{name} ")
                   and not line.strip("│ ").startswith("mailq")]  # fmt: skip
        assert line.rstrip("│ ").endswith("."), line
    assert "mailq demo" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"mailq {name}" in done.stdout


def test_wrong_usage_is_status_2():
    for arguments in (["unheard-of"], ["version", "--unheard-of"], ["run", "--config"]):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert arguments[-1] in done.stderr


def test_no_arguments_shows_the_help():
    done = run()
    assert "mailq run" in done.stdout + done.stderr


def test_version():
    done = run("version")
    assert done.returncode == 0
    assert done.stdout.split()[:2] == ["mailq", mailq.__version__]


def test_example_config():
    assert run("example-config").stdout == example()


def test_schemas(tmp_path):
    assert run("schemas").stdout == "".join(documents().values())
    assert run("schemas", "--out", str(tmp_path / "new" / "folder")).returncode == 0
    made = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "new" / "folder").iterdir()}
    assert made == {name: json.loads(text) for name, text in documents().items()}


def test_only_the_command_asked_for_is_imported():
    code = "import sys; from mailq.cli import main\ntry: main(['version'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    modules = done.stdout.split()
    assert "mailq.cli.contracts" in modules
    for heavy in ("aio_pika", "aiosmtplib", "cryptography", "mailq.cli.demo", "mailq.cli.run"):
        assert heavy not in modules


def test_commands_are_those_of_the_page():
    page = (ROOT / "docs/reference/commands.md").read_text("utf-8")
    for name in COMMANDS:
        assert f"| `mailqctl {name}" in page
    assert build().info.name == "mailq"


def test_the_limits_of_the_page_are_a_configuration():
    page = (ROOT / "docs/explanation/traffic.md").read_text("utf-8")
    (example_of_limits,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    rules = [LimitRule(**rule.model_dump()) for rule in Config(**tomllib.loads(example_of_limits)).limits]
    google = allowance(rules, "192.0.2.7", "a.test", ("aspmx.l.google.com",))
    assert (google.connections, google.message_rate.per_second) == (30, 50)
    assert google.message_rate_key.endswith("|192.0.2.7|*.google.com")
    at_google = allowance(rules, "192.0.2.1", "example.com", ("aspmx.l.google.com",))
    assert (at_google.connections, at_google.message_rate.interval) == (30, pytest.approx(1.8))
    elsewhere = allowance(rules, "192.0.2.1", "b.test", ("mx.b.test",))
    assert (elsewhere.connections, elsewhere.message_rate) == (10, None)


AS_A_USER = """
import os, sys
from mailq.cli import COMMANDS, build, main
build()
os.getuid() or os.setuid(65534)
main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", ["run", "send -", "watch", "poison list", "check", "webhooks", "webhooks dead list"])
def test_a_configuration_that_this_user_may_not_read_is_status_78(words):
    with tempfile.TemporaryDirectory(prefix="mailq-test-") as directory:
        Path(directory).chmod(0o755)
        file = Path(directory, "mailq.toml")
        file.touch(0o000)
        done = subprocess.run(
            [sys.executable, "-c", AS_A_USER, *words.split(), "-c", str(file)],
            capture_output=True, text=True, env=ENVIRON, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"mailq: {file}: cannot be read: Permission denied; let this user read it")


def test_run_begins_its_log_before_the_slow_imports(tmp_path):
    environ = ENVIRON | {
        "MAILQ_RABBITMQ__URL": "amqp://joe:secret@127.0.0.1:1/mail",
        "MAILQ_WORKER__JOURNAL_DIR": "kept",
    }
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "mailq", "run", "-p", "1"],
        stderr=subprocess.PIPE, text=True, env=environ, cwd=tmp_path,
    )  # fmt: skip
    with process:
        imported = []
        for line in process.stderr:
            if line.startswith("{"):
                break
            imported.append(line.rpartition("|")[2].strip())
        process.kill()
    starting = json.loads(line)
    assert starting.items() >= {
        "event": "starting", "version": mailq.__version__, "broker": "amqp://127.0.0.1:1/mail", "outbox": "outbox",
        "journal": str(tmp_path / "kept"), "http": "127.0.0.1:9125",
    }.items()  # fmt: skip
    for slow in ("aiohttp", "dns", "cryptography", "aiosmtplib", "mailq.service.build", "mailq.service.supervisor"):
        assert slow not in imported


def test_a_journal_that_cannot_be_written_is_told_before_the_broker(tmp_path):
    environ = ENVIRON | {"MAILQ_RABBITMQ__URL": "amqp://127.0.0.1:1/", "MAILQ_HTTP__ENABLED": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mailq", "run", "-p", "1"],
        stderr=subprocess.PIPE, text=True, env=environ | {"MAILQ_WORKER__JOURNAL_DIR": "/proc/mailq"},
    )  # fmt: skip
    with process:
        lines = [json.loads(process.stderr.readline()) for _ in range(3)]
        process.kill()
    assert [each["event"] for each in lines] == ["starting", "journal", "broker"]
    assert "set worker.journal_dir elsewhere" in lines[1]["detail"] or "/proc/mailq" in lines[1]["detail"]


@pytest.mark.parametrize("words", ["demo --dir", "schemas --out", "torture --keep", "sink --port 0 --dir"])
def test_a_directory_that_cannot_be_made_is_one_line_with_the_option(words):
    done = run(*words.split(), "/proc/none/here")
    assert done.returncode == 1
    assert done.stderr.startswith("mailq: /proc/none")
    assert done.stderr.count("\n") == 1
    assert f"with {words.split()[-1]}" in done.stderr


def test_run_says_that_its_port_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "mailq.toml"
        file.write_text(f"[http]\nport = {port}\n")
        done = run("run", "-c", str(file))
    assert done.returncode == 1
    starting, line = done.stderr.splitlines()
    assert json.loads(starting)["event"] == "starting"
    assert line.startswith("mailq: ")
    assert "http.port" in line
    assert str(port) in line
