"""Three RabbitMQ nodes in one cluster on loopback, for tests of what a majority means.

    with Cluster(directory) as cluster:
        cluster.nodes[1].stop()

Each node is a `PrivateRabbit` with a directory, ports and a name of its own; cookie and epmd are
shared. The first node's guard runs epmd, so the first is the one that stays: nodes that start later
find epmd there already, and one that stops takes only itself away. A test that stops a node leaves a
cluster for nobody else.
"""

import secrets
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from mailq.testbed.free_port import free_port
from mailq.testbed.rabbitmq import START_SECONDS, PrivateRabbit

NODES = 3


class Node(PrivateRabbit):
    """One node of a cluster; `names` are those of all its nodes."""

    def __init__(self, directory: Path, name: str, names: Iterable[str], epmd_port: int) -> None:
        peers = {f"cluster_formation.classic_config.nodes.{n}": each for n, each in enumerate(names, 1)}
        settings = {
            "cluster_formation.peer_discovery_backend": "classic_config",
            # A node that sees no other stays as it is: that is what the tests are about.
            "cluster_partition_handling": "ignore",
            "raft.wal_max_size_bytes": "16777216",
        }
        super().__init__(directory, settings=settings | peers)
        self.name = name
        self._epmd_port = epmd_port

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"RABBITMQ_NODENAME": self.name}


class Cluster:
    """The nodes; a context manager that starts them together and stops those that run."""

    def __init__(self, directory: Path) -> None:
        self._epmd_port, cookie = free_port(), secrets.token_hex(16)
        names = [f"mailq{number}@localhost" for number in range(1, NODES + 1)]
        self.nodes = [Node(directory / name, name, names, self._epmd_port) for name in names]
        for node in self.nodes:
            node.directory.mkdir(parents=True)
            file = node.directory / ".erlang.cookie"
            file.write_text(cookie)
            file.chmod(0o400)

    def __enter__(self) -> Self:
        """Start the nodes side by side, the first a little earlier, so that epmd is its."""
        first, *others = self.nodes
        try:
            with ThreadPoolExecutor() as pool:
                starting = pool.submit(first.start)
                deadline = time.monotonic() + START_SECONDS
                while not self._has_epmd() and not starting.done():
                    assert time.monotonic() < deadline, "no epmd"
                    time.sleep(0.05)
                self.start(others)
                starting.result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End them by force: nobody needs their data, and a minority would wait long for the others."""
        for node in reversed(self.nodes):
            node.kill()

    def _has_epmd(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._epmd_port)) == 0

    def start(self, nodes: Iterable[Node]) -> None:
        """Start nodes side by side."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, nodes))
