"""docs/how-to/install.md as an operator follows it: its commands, from a wheel in an empty environment to a first mail.

Everything that the page puts on a host goes below a directory of the test. Commands of apt, systemd and user accounts
are only recorded; the test starts what the unit file says.
"""

import asyncio
import contextlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import pages

import mailq
from mailq.testbed.free_port import free_port

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/install.md").read_text("utf-8")
UNIT = (ROOT / "etc/mailq.service").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TUTORIAL = re.findall(
    r"^```sh\n(.*?)^```$", (ROOT / "docs/tutorials/first-mail.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)
RECORDED = ("apt-get", "systemctl", "useradd")

pytestmark = pytest.mark.timeout(400)


class Host:
    """A directory that takes what the page puts on a host."""

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home = home
        self.wheel = wheel
        self.ports = {"2525": free_port(), "9125": free_port()}
        self.checkout = home / "checkout"
        (self.checkout / "etc").mkdir(parents=True)
        for name in ("constraints.txt", "etc/mailq.service"):
            (self.checkout / name).write_bytes((ROOT / name).read_bytes())
        for name in ("usr/local/bin", "etc/systemd/system", "var/lib"):
            (home / name).mkdir(parents=True)
        commands = home / "commands"
        commands.mkdir()
        (commands / "python3").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
        for name in RECORDED:
            (commands / name).write_text(f'#!/bin/sh\necho {name} "$@" >>"{home}/recorded"\n')
            (commands / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "http", "HTTP"))}
        self.environ = kept | {
            "PATH": f"{commands}:{home}/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "MAILQ_CONFIG": str(home / "etc/mailq/mailq.toml"),
            "MAILQ_HTTP__PORT": str(self.ports["9125"]),
        }

    def here(self, text: str) -> str:
        """Return commands with places, ports, owners and the checkout's package as they are in the test."""
        text = re.sub(r"(?<![\w/.])/(opt|etc|var|usr)/", rf"{self.home}/\1/", text)
        text = re.sub(r"-o \w+ -g mailq |runuser -u mailq -- ", "", text)
        text = text.replace("constraints.txt .\n", f"constraints.txt {self.wheel}\n")
        for port, ours in self.ports.items():
            text = text.replace(f":{port}", f":{ours}")
        return text.replace("mailqctl sink\n", f"exec mailqctl sink --port {self.ports['2525']}\n")

    async def start(self, text: str, directory: Path | None = None, **environ: str):
        return await asyncio.create_subprocess_exec(
            "bash", "-euc", self.here(text),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=directory or self.checkout, env=self.environ | environ,
        )  # fmt: skip

    async def run(self, text: str, directory: Path | None = None, **environ: str) -> str:
        process = await self.start(text, directory, **environ)
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{text}\n{out.decode()}"
        return out.decode()

    @contextlib.asynccontextmanager
    async def running(self, text: str, directory: Path | None = None, **environ: str):
        process = await self.start(text, directory, **environ)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()
        assert process.returncode == 0


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    home = tmp_path_factory.mktemp("host")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(home), str(ROOT)]
    subprocess.run(build, check=True, timeout=200)
    (wheel,) = home.glob("mailq-*.whl")
    return Host(home, wheel)


async def ready(port):
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                return await asyncio.to_thread(pages.text, f"http://127.0.0.1:{port}/readyz")
            await asyncio.sleep(0.05)


async def test_the_page_leads_from_an_empty_host_to_a_first_mail(host, rabbit):
    packages, program, broker, configuration, check, service, sink, mail, upgrade, completion = BLOCKS
    await host.run(packages)
    assert f"mailq {mailq.__version__}" in await host.run(program)
    await host.run(broker)

    await host.run(configuration.replace("amqp://guest:guest@127.0.0.1/", rabbit.url))
    modes = {
        name: stat.S_IMODE((host.home / name).stat().st_mode) for name in ("var/lib/mailq", "etc/mailq/mailq.toml")
    }
    assert modes == {"var/lib/mailq": 0o700, "etc/mailq/mailq.toml": 0o640}
    await host.run(check)
    await host.run(service)

    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    async with host.running(f"exec {command}", host.home / "var/lib/mailq"), host.running(sink) as receiver:
        await ready(host.ports["9125"])
        while b"listening" not in (line := await asyncio.wait_for(receiver.stdout.readline(), 60)):
            assert line
        told = await host.run(mail)
        assert "jo@receiver.test" in told
        assert "success" in told
    assert list((host.home / "var/lib/mailq/journal").iterdir())

    await host.run(upgrade)
    await host.run(completion)
    script = (host.home / "etc/bash_completion.d/mailqctl").read_text()
    assert "complete -o default -F _mailqctl_completion mailqctl" in script
    recorded = (host.home / "recorded").read_text()
    for line in ("systemctl enable --now rabbitmq-server", "systemctl enable --now mailq", "systemctl stop mailq"):
        assert line in recorded


async def test_the_tutorial_leads_to_a_first_mail_and_a_refusal(host, rabbit, tmp_path):
    if not (host.home / "opt").exists():
        await host.run(BLOCKS[1])
    sink, run, publish, watch, refusal = TUTORIAL
    there = {"MAILQ_CONFIG": "", "MAILQ_RABBITMQ__URL": rabbit.url, "MAILQ_WORKER__JOURNAL_DIR": str(tmp_path)}
    async with host.running(sink, tmp_path) as receiver:
        while b"listening" not in (line := await asyncio.wait_for(receiver.stdout.readline(), 60)):
            assert line
        worker = f"export {run.replace(' mailqctl', chr(10) + 'exec mailqctl')}"
        async with host.running(worker, tmp_path, **there):
            await ready(host.ports["9125"])
            await host.run(publish, tmp_path, **there)
            assert "success" in await host.run(watch, tmp_path, **there)
            assert "550" in await host.run(refusal, tmp_path, **there)


async def test_the_demo_of_the_wheel_runs_in_any_directory_and_twice(host, tmp_path):
    if not (host.home / "opt").exists():
        await host.run(BLOCKS[1])
    for _ in range(2):
        assert "All 9 results arrived" in await host.run("mailqctl demo", tmp_path, MAILQ_CONFIG="")
    assert "Usage: mailqctl run " in await host.run("mailqctl run --help", tmp_path, COLUMNS="120")


def test_the_units_share_one_sandbox():
    units = [(ROOT / "etc" / f"{name}.service").read_text("utf-8") for name in ("mailq", "mailq-webhooks")]
    one, other = (unit[unit.index("NoNewPrivileges=") : unit.index("[Install]")] for unit in units)
    assert one == other
