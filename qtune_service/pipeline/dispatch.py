"""Dispatch of shards to scoring actors: what is handed out again, which actors may work, and which nodes are closed.

The supervisor (retries.py) owns a `Dispatch`. A source on the driver's node takes shards from it (ray_pool.py), an
actor asks before each shard, and the driver confirms each shard that arrived. So a shard of a lost actor is handed out
again at once, although Ray itself keeps it for the actor that had it. Shards are never lost and never scored by two
actors at a time, unless one of them was silent.

    an engine does not start      the node is closed to new actors after START_FAILURES of them (fatal errors: one), or
                                  after START_DEATHS processes that died without a word
    an engine fails on a shard    the shard goes to another actor after two failures on one. An actor with failures on
                                  two shards, while others work, is retired; a node with two retired actors as well
    a shard that failed on an     counts against the first actor in the same way
    actor succeeds on another
    a process dies with a shard   the shard is handed out again as soon as the cluster has noticed; deaths with two
                                  shards, and none finished between, retire the actor
    an actor is silent            its shards are handed out again after LOST_S
    an actor idles                shards that wait for another actor are handed out again after IDLE_S
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qtune_service.pipeline.actor_states import ENDED, ActorStates

START_FAILURES, START_DEATHS = 2, 4
SHARD_FAILURES, RETIRED_ACTORS = 2, 2
LOST_S, IDLE_S, PAUSE_S = 60.0, 10.0, 3.0
MAX_PROBLEMS, PROBLEM_CHARS = 200, 500
MAX_REPEATS = 3
"""Most times that a shard is handed out again because an actor idles."""

Order: TypeAlias = Literal["work", "skip", "leave", "again", "park"]
"""work: start or score. skip: this shard is not for this actor. leave: give way to another actor. again: end the
process, and Ray starts another one for this actor. park: wait, without a model."""
Seat: TypeAlias = tuple[str, str]
"""(id of an actor, node): a process that Ray restarts there has the same seat, and probably the same GPU."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the driver must know of the pool."""

    working: int
    """Actors that start, idle or score."""
    parked: int
    """Actors that wait without a model. They have ended, and still count for the pool's size."""
    ended: int
    """Actors that failed to start or were retired, since the run began."""
    closed_nodes: frozenset[str]
    problems: tuple[str, ...]


@dataclass(slots=True)
class Dispatch:
    """Shards and actors of one run. Not thread-safe."""

    actors: ActorStates
    start_failures: int = START_FAILURES
    clock: Callable[[], float] = time.monotonic
    is_over: bool = False
    stage: str = ""
    """Name of the stage that actors run."""
    _open: set[int] = field(default_factory=set)
    """Shards that have not arrived at the driver."""
    _queue: deque[tuple[float, int]] = field(default_factory=deque)
    """(not before, shard)."""
    _queued: set[int] = field(default_factory=set)
    """Shards in the queue."""
    _handed_out: list[int] = field(default_factory=list)
    """In this order."""
    _touched_s: dict[int, float] = field(default_factory=dict)
    _active: dict[int, str] = field(default_factory=dict)
    """Shard -> the stage that has begun it, outside of actors."""
    _scored: set[int] = field(default_factory=set)
    _repeats: Counter[int] = field(default_factory=Counter)
    _holders: dict[int, str] = field(default_factory=dict)
    """Shard -> name of the actor that has it."""
    _engaged: set[int] = field(default_factory=set)
    """Shards of these that have had the engine. Another actor may still get the others."""
    _ids: dict[str, str] = field(default_factory=dict)
    """Name -> id of an actor."""
    _has_worked: set[str] = field(default_factory=set)
    _beats_s: dict[str, float] = field(default_factory=dict)
    _present: frozenset[str] = frozenset()
    """Actors that the cluster had a process of, when it was last asked."""
    _failures: defaultdict[int, Counter[Seat]] = field(default_factory=lambda: defaultdict(Counter))
    """Shard -> failures by seat, deaths of processes included."""
    _errors: defaultdict[int, set[Seat]] = field(default_factory=lambda: defaultdict(set))
    """Shard -> seats that reported an error."""
    _strikes: defaultdict[Seat, set[int]] = field(default_factory=lambda: defaultdict(set))
    _deaths: defaultdict[Seat, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Shards with which processes died, since the seat has finished one."""
    _reported: set[str] = field(default_factory=set)
    """Actors whose processes end after a failure that is counted."""
    _retired: dict[Seat, str] = field(default_factory=dict)
    _start_failures: Counter[str] = field(default_factory=Counter)
    _start_deaths: Counter[str] = field(default_factory=Counter)
    _closed: dict[str, str] = field(default_factory=dict)
    """Node -> why no actor starts there any more."""
    _left: dict[str, str] = field(default_factory=dict)
    """Node -> why all its actors leave."""
    _parked: set[str] = field(default_factory=set)
    _ended: int = 0
    _problems: list[str] = field(default_factory=list)

    # --- shards

    def offer(self, stage: str, shards: Iterable[int]) -> None:
        """Begin a pool: hand out these shards, and forget the actors of an earlier pool."""
        self.stage = stage
        for name in list(self._ids):
            self._forget(name)
        self._parked.clear()
        self._holders.clear()
        self._engaged.clear()
        self._active.clear()
        self._queue.clear()
        self._queued.clear()
        self._handed_out.clear()
        self._open = set(shards)
        for shard in sorted(self._open):
            self._requeue(shard)

    def take(self, start: int | None = None) -> list[int] | None:
        """Return the shards to hand out now. None: all have arrived, or the run is over.

        start: also return those that were handed out before, from this one on. A source that Ray runs again must yield
        the same rows: Ray skips as many as it had received.
        """
        if self.is_over or not self._open:
            return None
        self._requeue_of_silent_actors()
        self._requeue_for_idle_actors()
        now, before, waiting = self.clock(), len(self._handed_out), deque[tuple[float, int]]()
        for at_s, shard in self._queue:
            if at_s > now:
                waiting.append((at_s, shard))
            elif shard in self._open and shard not in self._engaged:
                self._handed_out.append(shard)
                self._touched_s[shard] = now
        self._queue, self._queued = waiting, {shard for _, shard in waiting}
        return self._handed_out[before if start is None else start :]

    def arrived(self, shard: int, *, has_failed: bool) -> None:
        """Close a shard. One that failed for good is not held against actors."""
        self._open.discard(shard)
        self._scored.discard(shard)
        self._failures.pop(shard, None)
        self._errors.pop(shard, None)
        if has_failed:
            for shards in (*self._strikes.values(), *self._deaths.values()):
                shards.discard(shard)

    def begin(self, stage: str, shard: int) -> None:
        """Record that a stage works on a shard."""
        if stage != self.stage:
            self._active[shard], self._touched_s[shard] = stage, self.clock()

    def end(self, shard: int) -> None:
        """Record that a stage no longer works on a shard."""
        self._active.pop(shard, None)
        self._touched_s[shard] = self.clock()

    def succeed(self, stage: str, shard: int) -> None:
        """Record that a stage has finished a shard."""
        self.end(shard)
        if stage != self.stage or (name := self._holders.get(shard)) is None:
            return
        self._scored.add(shard)
        seat = self._seat(name)
        self._deaths[seat].clear()
        self._failures.pop(shard, None)
        for other in self._errors.pop(shard, set()):
            if other != seat:
                self._strike(other, shard, f"shard {shard} failed there and succeeded on {name}")

    def fail(self, stage: str, shard: int, problem: str, *, is_engine: bool) -> bool:
        """Record a failure on a shard. Return whether it has been handed out to another actor."""
        self.end(shard)
        if stage != self.stage or (name := self._holders.get(shard)) is None:
            return False
        seat = self._seat(name)
        self._failures[shard][seat] += 1
        self._errors[shard].add(seat)
        if is_engine:
            self._reported.add(name)
            self._strike(seat, shard, problem)
        if self._failures[shard][seat] < SHARD_FAILURES or not self._others_work(seat):
            return False
        self._drop(shard)
        self._requeue(shard, PAUSE_S)
        return True

    def _requeue(self, shard: int, pause_s: float = 0.0) -> None:
        if shard in self._open and shard not in self._queued:
            self._queue.append((self.clock() + pause_s, shard))
            self._queued.add(shard)

    def _requeue_of_silent_actors(self) -> None:
        for name, beat_s in list(self._beats_s.items()):
            if self.clock() - beat_s > LOST_S and name in self._has_worked:
                self._forget(name)

    def _requeue_for_idle_actors(self) -> None:
        """Hand out shards that wait for an actor which works on another one, or is lost, while others idle."""
        now = self.clock()
        if self._queue or not any(s.phase == "idle" and s.age_s >= IDLE_S for s in self.actors.all()):
            return
        for shard in self._open - self._scored - self._engaged - self._active.keys():
            if now - self._touched_s.get(shard, now) >= IDLE_S and self._repeats[shard] < MAX_REPEATS:
                self._repeats[shard] += 1
                self._requeue(shard)

    # --- actors

    def start(self, name: str, actor: str) -> Order:
        """Begin an actor's process. An earlier process of the same actor is dead."""
        for other, of in list(self._ids.items()):
            if of == actor and other != name:
                self._bury(other)
        self._ids[name] = actor
        self.actors.set(name, "starting")
        seat = self._seat(name)
        if (why := self._retired.get(seat) or self._closed.get(seat[1])) is None:
            return "work"
        return self._send_away(name, why)

    def started(self, name: str) -> None:
        """Record that an actor's engine runs."""
        self._has_worked |= {name, self._ids.get(name, name)}
        node = _node(name)
        self._start_failures[node] = self._start_deaths[node] = 0
        self.beat(name)
        self.actors.set(name, "idle")

    def fail_start(self, name: str, problem: str, *, is_fatal: bool) -> Order:
        """Record that an engine did not start. Return what the process does now."""
        node = _node(name)
        self._add_problem(f"{name}: the engine did not start: {problem}")
        self._ended += 1
        self._start_failures[node] += 1
        self.actors.set(name, "failed", problem=problem)
        if is_fatal or self._start_failures[node] >= self.start_failures:
            self._close(node, f"engines do not start there: {problem}")
        if node not in self._closed and self._ids.get(name) in self._has_worked:
            return "again"
        return self._send_away(name, problem)

    def hold(self, name: str, shard: int) -> Order:
        """Give a shard to an actor, unless it is not for this one."""
        seat = self._seat(name)
        if (why := self._retired.get(seat) or self._left.get(seat[1])) is not None and self._others_work(seat):
            self._requeue(shard)
            self.actors.set(name, "retired", problem=why)
            return "again"
        is_twice = self._holders.get(shard) == name  # Ray repeated it for this process, and it was handed out again
        if is_twice or shard not in self._open or not self._may_take(name, shard):
            return "skip"
        if self._failures[shard][seat] >= SHARD_FAILURES and self._others_work(seat):
            self._requeue(shard, PAUSE_S)
            return "skip"
        if not self._shards_of(name):
            self.actors.set(name, "scoring", shard)
        self._holders[shard], self._touched_s[shard] = name, self.clock()
        self.beat(name)
        return "work"

    def enter(self, name: str, shard: int) -> bool:
        """Give the engine of an actor to a shard. False: the actor has the shard no more."""
        if self.stage and self._holders.get(shard) != name:
            return False
        self._engaged.add(shard)
        return True

    def release(self, name: str, shard: int) -> None:
        """Take a shard from an actor that has ended its work on it."""
        if self._holders.get(shard) == name:
            self._drop(shard)
        if not self._shards_of(name) and not self._has_ended(name):
            self.actors.set(name, "idle")

    def give_back(self, name: str) -> list[int]:
        """Hand out the shards of an actor that leaves by itself, as on a notice of preemption, and return them."""
        shards = self._shards_of(name)
        self._forget(name)
        return shards

    def beat(self, name: str) -> None:
        """Record a sign of life."""
        self._beats_s[name] = self.clock()

    def see(self, present: frozenset[str]) -> None:
        """Take the actors that the cluster has a process of. Those that have vanished are dead."""
        for name in (self._present - present) & self._ids.keys():
            self._bury(name)
        self._present = present

    def health(self) -> Health:
        """Return what the driver must know."""
        working = sum(state.phase not in ENDED for state in self.actors.all())
        closed = frozenset(self._closed) | frozenset(self._left)
        return Health(working, len(self._parked), self._ended, closed, tuple(self._problems))

    def _send_away(self, name: str, why: str) -> Order:
        """Return how an actor leaves. Ray gives the shards of one that has worked to its next process, which waits."""
        if self._ids.get(name) in self._has_worked:
            self._parked.add(name)
            self.actors.set(name, "retired", problem=why)
            return "park"
        self.actors.set(name, "failed", problem=why)
        return "leave"

    def _bury(self, name: str) -> None:
        """Count a dead process against its seat or node, and hand out its shards."""
        node, seat = _node(name), self._seat(name)
        if not self._has_ended(name):
            if name not in self._has_worked:
                self._start_deaths[node] += 1
                if self._start_deaths[node] >= START_DEATHS:
                    self._close(node, f"{START_DEATHS} processes died there while their engines started")
                    self._add_problem(f"{name}: {self._closed[node]}")
                    self._ended += 1
            elif name not in self._reported:
                engaged = self._engaged.intersection(self._shards_of(name))
                self._deaths[seat] |= engaged
                for shard in engaged:
                    self._failures[shard][seat] += 1
                if len(self._deaths[seat]) >= SHARD_FAILURES:
                    self._retire(seat, f"its process died with {SHARD_FAILURES} shards, and finished none between")
        self._forget(name)

    def _forget(self, name: str) -> None:
        for shard in self._shards_of(name):
            self._drop(shard)
            self._requeue(shard)
        self._parked.discard(name)
        self._beats_s.pop(name, None)
        self._ids.pop(name, None)
        self.actors.drop(name)

    def _strike(self, seat: Seat, shard: int, problem: str) -> None:
        self._strikes[seat].add(shard)
        if len(self._strikes[seat]) >= SHARD_FAILURES:
            self._retire(seat, problem)

    def _retire(self, seat: Seat, problem: str) -> None:
        """Retire an actor, and its node with the second one, if others work."""
        if seat in self._retired or not self._others_work(seat):
            return
        self._retired[seat] = problem
        self._ended += 1
        names = [name for name, actor in self._ids.items() if (actor, _node(name)) == seat]
        for name in names:
            self.actors.set(name, "retired", problem=problem)
        node, what = seat[1], "retired"
        if sum(of == node for _, of in self._retired) >= RETIRED_ACTORS and node not in self._left:
            what = "retired, and its node with it"
            self._left[node] = f"{RETIRED_ACTORS} actors of node {node} were retired"
            self._close(node, self._left[node])
        self._add_problem(f"{names[0] if names else node}: {what}: {problem}")

    def _close(self, node: str, why: str) -> None:
        self._closed.setdefault(node, why)

    def _others_work(self, seat: Seat) -> bool:
        """Return whether an actor with another seat can take its shards."""
        return any(
            state.phase in ("idle", "scoring")
            and self._seat(state.name) != seat
            and self._seat(state.name) not in self._retired
            and state.node not in self._left
            for state in self.actors.all()
        )

    def _may_take(self, name: str, shard: int) -> bool:
        """Return whether no other actor has a shard, or one that is busy with another shard while this one idles."""
        return shard not in self._holders or (shard not in self._engaged and not self._shards_of(name))

    def _drop(self, shard: int) -> None:
        self._holders.pop(shard, None)
        self._engaged.discard(shard)

    def _shards_of(self, name: str) -> list[int]:
        return [shard for shard, holder in self._holders.items() if holder == name]

    def _has_ended(self, name: str) -> bool:
        return any(state.name == name and state.phase in ENDED for state in self.actors.all())

    def _seat(self, name: str) -> Seat:
        return self._ids.get(name, name), _node(name)

    def _add_problem(self, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem[:PROBLEM_CHARS])


def _node(name: str) -> str:
    return name.rpartition(":")[0]
