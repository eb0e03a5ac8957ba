"""JavaScript in tests: Node.js with the packages that `examples/package.json` pins.

`scripts/setup test` installs them in `.run/node`; here they are only looked for.
"""

import filecmp
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def workshop(directory: Path) -> Path:
    """Return `directory` with the examples copied in and their packages in reach."""
    packages = ROOT / ".run/node"
    wanted, installed = ROOT / "examples/package.json", packages / "installed"
    assert installed.exists(), "the JavaScript packages are missing: run `scripts/setup test`"
    assert filecmp.cmp(wanted, installed, shallow=False), "the JavaScript packages are others: run `scripts/setup test`"
    for file in (ROOT / "examples").iterdir():
        if file.is_file():
            (directory / file.name).write_bytes(file.read_bytes())
    (directory / "node_modules").symlink_to(packages / "node_modules")
    return directory


def node(directory: Path, script: str, *arguments: str) -> str:
    """Run a module of the workshop to its end and return what it printed."""
    (directory / "script.mjs").write_text(script)
    done = subprocess.run(
        ["node", "script.mjs", *arguments], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
