"""Ray clusters of several nodes on this machine, whose nodes can be lost one by one.

Each node is `ray start --block` in a session of its own, with free ports, a token of this cluster's own, and its own
working folder, so that nothing relative is shared. What is killed is the node's own processes, never `ray stop`, which
would end every Ray of this machine.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.jobs import environment
from tests.processes import ACTOR, kill_all, titled, tree
from tests.waiting import free_port

RAY = str(Path(sys.executable).parent / "ray")
START_S, TRIES = 180, 3
"""Ray itself gives a node up that is not ready after 30 s, as happens on a machine with much else to do."""
LOG = "start.log"
LONG_S = 500
"""No command takes as long, also where the machine is busy."""
OBJECT_STORE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One node: a process that holds its raylet and workers."""

    process: subprocess.Popen[bytes]
    folder: Path
    """Its working folder."""
    is_head: bool

    def actors(self) -> list[psutil.Process]:
        """Scoring actors that live here."""
        return titled(ACTOR, [self.process.pid])

    def lose(self) -> None:
        """Kill all processes of a node, as if its power failed."""
        doomed = tree(self.process.pid)
        self.process.kill()
        kill_all(doomed)
        self.process.wait()
        psutil.wait_procs(doomed, timeout=10)


@dataclass(slots=True)
class Nodes:
    """A cluster: the head first, then the nodes that joined."""

    folder: Path
    env: dict[str, str]
    has_dashboard: bool = True
    """`ray job submit` needs it; it is ten processes."""
    port: int = 0
    dashboard_port: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Return the address for --ray-address."""
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """Return the address for `ray job submit`."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def roots(self) -> list[int]:
        """The nodes' processes."""
        return [node.process.pid for node in self.nodes]

    def start_head(self, cpus: int, gpus: int = 0) -> Node:
        """Start the head of a new cluster, at a new port. GPUs are what Ray is told, and need not be there."""

        def arguments() -> list[str]:
            self.port, self.dashboard_port = free_port(), free_port()
            ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard_port}"]
            more = [f"--ray-client-server-port={free_port()}", f"--include-dashboard={self.has_dashboard}"]
            return ["--head", *ports, *more, f"--temp-dir={self.folder}"]

        return self._start(cpus, gpus, arguments)

    def join(self, cpus: int, gpus: int = 0, *, resources: Mapping[str, float] | None = None) -> Node:
        """Start one more node. resources: further resources that Ray is told."""
        more = [f"--resources={json.dumps(dict(resources))}"] if resources else []
        return self._start(cpus, gpus, lambda: [f"--address={self.address}", *more])

    def lose(self, node: Node) -> None:
        """Lose one node."""
        self.nodes.remove(node)
        node.lose()

    def lose_all(self) -> None:
        """Lose every node, the head included."""
        for node in reversed(self.nodes):
            node.lose()
        self.nodes.clear()

    def _start(self, cpus: int, gpus: int, arguments: Callable[[], list[str]]) -> Node:
        for _ in range(TRIES):
            node = self._launch(cpus, gpus, *arguments())
            self.nodes.append(node)
            if is_up(node):
                return node
            self.lose(node)
        raise RuntimeError(f"a node did not start: {start_log(node).read_text()}")

    def _launch(self, cpus: int, gpus: int, *arguments: str) -> Node:
        folder = Path(tempfile.mkdtemp(prefix="node-", dir=self.folder))
        ports = [f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
        size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        with (folder / LOG).open("wb") as output:
            process = subprocess.Popen(
                [RAY, "start", "--block", *arguments, *ports, *size],
                env=self.env,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Node(process, folder, is_head="--head" in arguments)


def start_log(node: Node) -> Path:
    """Return the log of `ray start`."""
    return node.folder / LOG


def is_up(node: Node) -> bool:
    """Wait until a node has started; False where it has not."""
    deadline = time.monotonic() + START_S
    while b"Ray runtime started" not in start_log(node).read_bytes():
        if node.process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def ray_job(cluster: Nodes, *arguments: str, folder: Path | None = None) -> subprocess.Popen[str]:
    """`ray job ...` with the cluster's token."""
    return subprocess.Popen(
        [RAY, "job", arguments[0], "--address", cluster.dashboard, *arguments[1:]],
        env=cluster.env,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def said(command: subprocess.Popen[str]) -> str:
    """Return the output of a command that must succeed."""
    try:
        text, _ = command.communicate(timeout=LONG_S)
    finally:
        kill_all([*tree(command.pid)])
        command.kill()
    assert command.returncode == 0, text
    return text


@contextmanager
def ray_nodes(*cpus: int, env: Mapping[str, str] | None = None, has_dashboard: bool = True) -> Iterator[Nodes]:
    """Run a cluster with token authentication: a head and further nodes with so many CPUs each."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's socket paths must be short
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = Nodes(folder, environment({**own, **(env or {})}), has_dashboard)
    try:
        if cpus:
            nodes.start_head(cpus[0])
        for count in cpus[1:]:
            nodes.join(count)
        yield nodes
    finally:
        nodes.lose_all()
        shutil.rmtree(folder, ignore_errors=True)
