"""The layers of `.importlinter` hold for every module: a new one needs a folder, and no folder imports upwards."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the package with its contracts."""
    shutil.copytree(ROOT / "mailq", tmp_path / "mailq", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint(directory):
    """Check the contracts there; returns status and output."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    environ = os.environ | {"PYTHONPATH": str(directory), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_package_keeps_its_contracts_and_a_module_without_a_folder_breaks_them(copy):
    assert lint(copy)[0] == 0
    (copy / "mailq" / "loose.py").write_text('"""No folder has this module."""\n')
    status, said = lint(copy)
    assert (status, "loose" in said) == (1, True)


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("worker/ack_tracker.py", "pamqp"),
        ("delivery/attempt_timeout.py", "aiohttp"),
        ("core/times.py", "asyncio"),
        ("cli/send.py", "pamqp"),
        ("delivery/governor.py", "mailq.config"),
        ("edges/tls.py", "mailq.worker.worker"),
    ],
)
def test_a_forbidden_import_breaks_them(copy, module, library):
    with (copy / "mailq" / module).open("a") as file:
        file.write(f"\nimport {library}  # noqa\n")
    status, said = lint(copy)
    assert (status, "BROKEN" in said) == (1, True)
