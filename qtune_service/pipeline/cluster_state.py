"""The resources of a cluster, who uses them, and which actors of this job run. ray_cluster.py fills it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["GPU", "CPU"]
NODE_CHARS = 12
"""Length of the node ids in names of actors."""
EPSILON = 1e-6
"""Ray's resources are multiples of 1e-4."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node that is alive."""

    total: Mapping[str, float]
    free: Mapping[str, float]
    host: str = ""

    def room(self, need: Mapping[Kind, float]) -> int:
        """Return how many actors with these needs fit into what is free."""
        return min(math.floor((self.free.get(kind, 0.0) + EPSILON) / amount) for kind, amount in need.items())


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A cluster at one moment."""

    nodes: Mapping[str, Node]
    """Node id, shortened as in names of actors -> node."""
    placed: frozenset[str]
    """Names of this job's actors that have a process and their resources, as NODE:PROCESS."""
    unplaced: int = 0
    """Actors that this job requested and that have no process yet."""
    others: Mapping[Kind, float] = field(default_factory=dict)
    """Resources that actors of other jobs use."""
    lacks_cpu_nodes: bool = False
    """Whether CPU work has nodes of its own, of which there is none."""

    def total(self, kind: Kind) -> float:
        """Return what all nodes have."""
        return sum(node.total.get(kind, 0.0) for node in self.nodes.values())

    def free(self, kind: Kind) -> float:
        """Return what nobody uses."""
        return sum(node.free.get(kind, 0.0) for node in self.nodes.values())

    def largest(self, kind: Kind) -> float:
        """Return what the largest node has."""
        return max((node.total.get(kind, 0.0) for node in self.nodes.values()), default=0.0)

    def host(self, actor: str) -> str:
        """Return the host name of an actor's node, or the node's id where the node is gone."""
        name = actor.rpartition(":")[0]
        return (self.nodes[name].host if name in self.nodes else "") or name
