"""Run a job on this machine or on a cluster of two nodes, and find the victims of kills there."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import Popen

import psutil

from benchmarks.chaos.kinds import Victim
from tests.nodes import Node, Nodes, ray_nodes
from tests.processes import ACTOR, ENGINE, TASK, kill_all, titled

CPUS = (4, 4)
"""CPUs of the head and of each worker node: an actor and its tasks fit on either."""


@dataclass(slots=True)
class Host:
    """A machine or a cluster. Each kill is a `kill -9` of one process, chosen at random among the possible victims."""

    chance: random.Random
    cluster: Nodes | None = None

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
        return [*self.cluster.nodes[:1]] if victim == "head node" else [*self.cluster.nodes[1:]]

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
        head_is_there = bool(self.cluster.nodes) and self.cluster.nodes[0].is_head
        if not head_is_there:
            self.cluster.lose_all()
            self.cluster.start_head(CPUS[0])
        for cpus in CPUS[len(self.cluster.nodes) :]:
            self.cluster.join(cpus)


@contextmanager
def host_of(setting: str, chance: random.Random) -> Iterator[Host]:
    """Yield the machine or cluster of a setting while it is needed."""
    if not setting.startswith("two nodes"):
        yield Host(chance)
        return
    with ray_nodes(*CPUS, has_dashboard=False) as cluster:
        yield Host(chance, cluster)
