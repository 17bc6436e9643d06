"""The scoring actors of a run: what each of them does, since when, and why some of them failed.

Actors report to the supervisor (retries.py). Ages are measured by the supervisor's own clock alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    phase_s: float = 0.0
    """How long it has been in this phase, also for `scoring`."""
    detail: str = ""
    """What exactly it does in this phase, such as `downloading the model`. Empty: what the phase says."""

    @property
    def node(self) -> str:
        """Return its node."""
        return self.name.rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class _Latest:
    """The last report of an actor. Times are of the supervisor's clock."""

    phase: Phase
    since_s: float
    moved_s: float
    """When its shard had its last finished sample, or the beginning of the phase."""
    shard: int | None
    problem: str
    detail: str = ""


@dataclass(slots=True)
class ActorStates:
    """The latest state of each actor of a run."""

    clock: Callable[[], float] = time.monotonic
    _states: dict[str, _Latest] = field(default_factory=dict)

    def set(self, name: str, phase: Phase, shard: int | None = None, problem: str = "") -> None:
        """Set what an actor does from now on."""
        now = self.clock()
        self._states[name] = _Latest(phase, now, now, shard, problem)

    def describe(self, name: str, detail: str) -> None:
        """Set what exactly an actor does in its phase, such as a download before the model is loaded."""
        if (state := self._states.get(name)) is not None:
            self._states[name] = replace(state, detail=detail)

    def drop(self, name: str) -> None:
        """Forget an actor: its process is gone."""
        self._states.pop(name, None)

    def moved(self, shard: int) -> None:
        """Record that the actor with this shard has scored more of it."""
        for name, state in list(self._states.items()):
            if state.shard == shard and state.phase == "scoring":
                self._states[name] = replace(state, moved_s=self.clock())

    def all(self) -> list[ActorState]:
        """Return the states of all actors that ever reported, ended ones included."""
        now = self.clock()
        return [
            ActorState(name, s.phase, now - s.moved_s, s.shard, s.problem, now - s.since_s, s.detail)
            for name, s in list(self._states.items())
        ]
