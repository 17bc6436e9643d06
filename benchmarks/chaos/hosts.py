"""Run a job on this machine or on a cluster, and find the victims of kills there.

The crowded cluster has a node on which no engine starts, a node that joins only LATE_S after a job began, and a second
job that runs beside the first one.
"""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

import psutil

from benchmarks.chaos.kinds import Victim
from tests.broken_engine import break_node
from tests.jobs import QTUNE, REPO, environment
from tests.nodes import Node, Nodes, ray_nodes
from tests.processes import ACTOR, ENGINE, TASK, kill_all, titled, tree

CPUS = (4, 4)
"""CPUs of the head and of each worker node: an actor and its tasks fit on either."""
LATE_S, PAUSE_S = 10, "0.05"
"""PAUSE_S: of the breakable engine, before each shard."""
MAX_RUNS = 20
"""Most runs of the second job: kills of the head node end it, too."""


@dataclass(slots=True)
class Host:
    """A machine or a cluster. Each kill is a `kill -9` of one process, chosen at random among the possible victims."""

    chance: random.Random
    cluster: Nodes | None = None
    is_crowded: bool = False
    _broken: Node | None = None
    _repairs: threading.Lock = field(default_factory=threading.Lock)

    @property
    def arguments(self) -> list[str]:
        """Return the flags that the command needs to run here."""
        return [] if self.cluster is None else ["--ray-address", self.cluster.address, "--num-actors", "1-2"]

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables that the command needs to run here."""
        return {} if self.cluster is None else self.cluster.env

    def targets(self, victim: Victim, driver: Popen[str]) -> list[psutil.Process | Node]:
        """Return the processes or nodes that a kill may hit now."""
        roots = [driver.pid] if self.cluster is None else self.cluster.roots
        prefix = {"scoring actor": ACTOR, "vLLM engine": ENGINE, "task worker": TASK}
        if victim in prefix:
            return [*titled(prefix[victim], roots)]
        if victim in ("driver", "driver by SIGTERM"):
            return [psutil.Process(driver.pid)]
        assert self.cluster is not None
        return [*self.cluster.nodes[:1]] if victim == "head node" else [*self.healthy_workers]

    def strike(self, victim: Victim, targets: Sequence[psutil.Process | Node]) -> None:
        """Kill one of the targets."""
        target = self.chance.choice(targets)
        if isinstance(target, Node):
            assert self.cluster is not None
            self.cluster.lose(target)
        elif victim == "driver by SIGTERM":
            target.send_signal(signal.SIGTERM)
        else:
            kill_all([target])

    def repair(self) -> None:
        """Bring the cluster back to its size: a new node joins in place of a lost one, or a whole new cluster."""
        if self.cluster is None:
            return
        with self._repairs:
            head_is_there = bool(self.cluster.nodes) and self.cluster.nodes[0].is_head
            if not head_is_there:
                self.cluster.lose_all()
                self.cluster.start_head(CPUS[0])
            if self.is_crowded and self._broken not in self.cluster.nodes:
                self._broken = self.cluster.join(CPUS[1])
                break_node(self._broken.folder, start="no CUDA-capable device is detected")
            if not self.healthy_workers:
                self.cluster.join(CPUS[1])

    @property
    def healthy_workers(self) -> list[Node]:
        """Return the nodes beside the head on which engines start."""
        return [] if self.cluster is None else [n for n in self.cluster.nodes[1:] if n is not self._broken]

    @contextmanager
    def beside(self, second: SecondJob) -> Iterator[None]:
        """Run a second job beside the block on a crowded cluster, and let a node join only after LATE_S."""
        if self.cluster is None or not self.is_crowded:
            yield
            return
        self.repair()
        for node in self.healthy_workers:
            self.cluster.lose(node)
        late = threading.Timer(LATE_S, self.repair)
        late.start()
        second.start(self)
        try:
            yield
            late.join()
            second.finish(self)
        finally:
            late.cancel()
            second.end()


@contextmanager
def host_of(setting: str, chance: random.Random) -> Iterator[Host]:
    """Yield the machine or cluster of a setting while it is needed."""
    if setting.startswith("local"):
        yield Host(chance)
        return
    with ray_nodes(*CPUS, has_dashboard=False, env={"PYTHONPATH": str(REPO), "QTUNE_TEST_PAUSE_S": PAUSE_S}) as cluster:
        host = Host(chance, cluster, is_crowded=setting.startswith("crowded"))
        host.repair()
        yield host


@dataclass(slots=True)
class SecondJob:
    """A job that no kill is meant for. Where one ends it, its command is repeated."""

    arguments: Sequence[object]
    log: Path
    runs: int = 0
    _driver: Popen[str] | None = None

    def start(self, host: Host) -> None:
        """Start or continue it."""
        self.runs += 1
        with self.log.open("a") as log:
            self._driver = Popen(
                [*QTUNE, *map(str, self.arguments), *host.arguments],
                env=environment(host.env),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def finish(self, host: Host) -> None:
        """Wait until it is complete."""
        while self._driver is not None and self._driver.wait():
            if self.runs >= MAX_RUNS:
                raise RuntimeError(f"the second job did not complete in {MAX_RUNS} runs; see {self.log}")
            time.sleep(1)
            host.repair()
            self.start(host)

    def end(self) -> None:
        """Kill it where it still runs."""
        if self._driver is not None and self._driver.poll() is None:
            kill_all([*tree(self._driver.pid), psutil.Process(self._driver.pid)])
            self._driver.wait()
