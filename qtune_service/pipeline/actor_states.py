"""The scoring actors of a run: what each of them does, since when, and why some of them failed.

Actors report to the supervisor (retries.py). Ages are measured by the supervisor's own clock alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["starting", "idle", "scoring", "failed", "retired"]
"""starting: its engine is loading. failed: its engine did not start. retired: it works no more, after failures."""
ENDED: tuple[Phase, ...] = ("failed", "retired")


@dataclass(frozen=True, slots=True)
class ActorState:
    """What one actor does."""

    name: str
    """NODE:PROCESS."""
    phase: Phase
    age_s: float = 0.0
    """How long it has been in this phase. For `scoring`: since its shard's last finished sample."""
    shard: int | None = None
    problem: str = ""
    """Why it failed or was retired."""

    @property
    def node(self) -> str:
        """Return its node."""
        return self.name.rpartition(":")[0]


@dataclass(slots=True)
class ActorStates:
    """The latest state of each actor of a run."""

    clock: Callable[[], float] = time.monotonic
    _states: dict[str, tuple[Phase, float, int | None, str]] = field(default_factory=dict)

    def set(self, name: str, phase: Phase, shard: int | None = None, problem: str = "") -> None:
        """Set what an actor does from now on."""
        self._states[name] = (phase, self.clock(), shard, problem)

    def drop(self, name: str) -> None:
        """Forget an actor: its process is gone."""
        self._states.pop(name, None)

    def moved(self, shard: int) -> None:
        """Record that the actor with this shard has scored more of it."""
        for name, (phase, _, of, problem) in self._states.items():
            if of == shard and phase == "scoring":
                self._states[name] = (phase, self.clock(), of, problem)

    def all(self) -> list[ActorState]:
        """Return the states of all actors that ever reported, ended ones included."""
        now = self.clock()
        return [ActorState(name, phase, now - at, shard, why) for name, (phase, at, shard, why) in self._states.items()]
