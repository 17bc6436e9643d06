"""Simulate the end of a job on many actors of which some are lost: how long idle actors wait for the last shard.

A discrete-event simulation of the rule by which shards reach actors. Ray Data gives an actor up to `in_flight` shards,
of which it scores one, and prefers the actor with the fewest. An actor is lost in `losses` of its shards, at a random
moment. It comes back where it was (its process died), or after a new node has come (`away_s`). Ray keeps the shards of
a lost actor for it. With `requeue` they are handed out again, once the loss is noticed (dispatch.py); with `steal` an
idle actor gets, after IDLE_S, a shard that another one has and has not begun; with `notice` a lost actor has saved what
it had scored.

The tail is the time from the first actor that has nothing to do until the end, as a share of the job.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from qtune_service.pipeline.dispatch import IDLE_S, LOST_S

LOSS_S = 143.0
"""A shard of 4 million tokens on an actor with 28,000 tokens/s."""
ENCODE_S = 3.0
"""Until a shard that is handed out again has reached an actor."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A pool and the work for it."""

    actors: int = 64
    shards: int = 5100
    shard_s: float = 143.0
    spread: float = 0.1
    """Standard deviation of a shard's time, as a share: shards are cut by bytes, not by tokens."""
    slow_share: float = 0.0
    """Share of actors on GPUs of half the speed."""
    losses: float = 0.05
    """Chance that an actor is lost within LOSS_S."""
    node_share: float = 0.5
    """Share of the losses in which the node is gone too."""
    restart_s: float = 180.0
    """Until a restarted process has loaded its model."""
    away_s: float = 900.0
    """Until a new node has come and loaded its model."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How shards reach actors."""

    name: str
    in_flight: int = 2
    requeue: bool = True
    steal: bool = True
    notice: bool = False


RULES = (
    Rule("as Ray Data does", requeue=False, steal=False),
    Rule("one shard in flight", in_flight=1, requeue=False, steal=False),
    Rule("handed out again", steal=False),
    Rule("and taken by idle actors"),
    Rule("and lost actors had a notice", notice=True),
)


@dataclass(slots=True)
class _Actor:
    speed: float
    is_here: bool = True
    shards: list[int] = field(default_factory=list)
    """Those that it has; it scores the first."""
    epoch: int = 0
    """Counts losses, so that events of an earlier life are ignored."""
    idle_since_s: float | None = None
    begun_s: float = 0.0


@dataclass
class Simulation:
    """One job."""

    cluster: Cluster
    rule: Rule
    seed: int
    now: float = 0.0
    done: set[int] = field(default_factory=set)
    first_idle_s: float | None = None
    lost: int = 0

    def __post_init__(self) -> None:
        c, self._random = self.cluster, random.Random(self.seed)
        self._left = [max(0.1, self._random.gauss(1, c.spread)) * c.shard_s for _ in range(c.shards)]
        slow = round(c.slow_share * c.actors)
        self._actors = [_Actor(0.5 if i < slow else 1.0) for i in range(c.actors)]
        self._queue = deque(range(c.shards))
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = count()

    def run(self) -> Simulation:
        """Run it to its end."""
        self._dispatch()
        while len(self.done) < self.cluster.shards:
            self.now, _, what, which, epoch = heapq.heappop(self._events)
            getattr(self, f"_{what}")(which, epoch)
            self._dispatch()
        return self

    @property
    def tail(self) -> float:
        """Return the tail as a share of the job."""
        return (self.now - self.first_idle_s) / self.now if self.first_idle_s is not None else 0.0

    def _at(self, after_s: float, what: str, which: int, epoch: int = 0) -> None:
        heapq.heappush(self._events, (self.now + after_s, next(self._order), what, which, epoch))

    def _dispatch(self) -> None:
        """Give shards to the actors that have the fewest, as Ray Data does."""
        while self._queue:
            here = [a for a in self._actors if a.is_here and len(a.shards) < self.rule.in_flight]
            if not here:
                return
            shard = self._queue.popleft()
            if shard not in self.done and not any(shard in a.shards[:1] for a in self._actors if a.is_here):
                actor = min(here, key=lambda a: len(a.shards))
                actor.shards.append(shard)
                if len(actor.shards) == 1:
                    self._begin(self._actors.index(actor))
        for i, actor in enumerate(self._actors):
            if actor.is_here and not actor.shards and actor.idle_since_s is None:
                actor.idle_since_s = self.now
                if self.first_idle_s is None and len(self.done) > self.cluster.shards / 2:
                    self.first_idle_s = self.now
                self._at(IDLE_S, "idles", i, actor.epoch)

    def _begin(self, i: int) -> None:
        """Score the first shard of an actor, or be lost on the way."""
        actor = self._actors[i]
        while actor.shards and actor.shards[0] in self.done:
            del actor.shards[0]
        if not actor.shards:
            return
        actor.idle_since_s = None
        shard_s = self._left[actor.shards[0]] / actor.speed
        if self.cluster.losses:
            rate = -math.log(1 - self.cluster.losses) / LOSS_S
            if (after_s := self._random.expovariate(rate)) < shard_s:
                self._at(after_s, "loss", i, actor.epoch)
        self._at(shard_s, "end", i, actor.epoch)
        actor.begun_s = self.now

    def _end(self, i: int, epoch: int) -> None:
        actor = self._actors[i]
        if actor.epoch == epoch and actor.is_here:
            self.done.add(actor.shards.pop(0))
            self._begin(i)

    def _loss(self, i: int, epoch: int) -> None:
        actor = self._actors[i]
        if actor.epoch != epoch or not actor.is_here:
            return
        actor.epoch, actor.is_here, actor.idle_since_s = actor.epoch + 1, False, None
        self.lost += 1
        if self.rule.notice:
            self._left[actor.shards[0]] -= (self.now - actor.begun_s) * actor.speed
        is_node = self._random.random() < self.cluster.node_share
        self._at(self.cluster.away_s if is_node else self.cluster.restart_s, "return", i, actor.epoch)
        if self.rule.requeue:
            noticed_s = ENCODE_S if self.rule.notice or not is_node else LOST_S + ENCODE_S
            self._at(noticed_s, "requeue", i, actor.epoch)

    def _requeue(self, i: int, epoch: int) -> None:
        """Hand out what a lost actor was scoring. What it had not begun waits for an idle actor."""
        if self._actors[i].epoch == epoch and not self._actors[i].is_here:
            self._queue.extend(self._actors[i].shards[:1])

    def _return(self, i: int, epoch: int) -> None:
        actor = self._actors[i]
        if actor.epoch == epoch:
            actor.is_here = True
            held = {shard for a in self._actors if a is not actor and a.is_here for shard in a.shards[:1]}
            if self.rule.requeue:
                actor.shards = [shard for shard in actor.shards if shard not in held]
            self._begin(i)

    def _idles(self, i: int, epoch: int) -> None:
        """Hand out the shards that nobody scores."""
        actor = self._actors[i]
        if actor.epoch != epoch or actor.shards or not actor.is_here or not self.rule.steal or self._queue:
            return
        scored = {shard for a in self._actors if a.is_here for shard in a.shards[:1]}
        waiting = [shard for a in self._actors for shard in a.shards if shard not in scored | self.done]
        self._queue.extend(dict.fromkeys(waiting))
        self._at(IDLE_S, "idles", i, actor.epoch)


def tails(cluster: Cluster, rule: Rule, runs: int) -> list[Simulation]:
    """Simulate some jobs."""
    return [Simulation(cluster, rule, seed).run() for seed in range(runs)]


def sized(gib: float, shard_mib: float, **more: float) -> Cluster:
    """Return the cluster for an input of so many GiB in shards of this size. 16 MiB are 143 s."""
    return Cluster(shards=round(gib * 1024 / shard_mib), shard_s=LOSS_S * shard_mib / 16, **more)  # type: ignore[arg-type]


CLUSTERS = {
    "80 GiB, no losses": Cluster(losses=0),
    "80 GiB": Cluster(),
    "80 GiB, a quarter of slow GPUs": Cluster(slow_share=0.25),
    "20 GiB in 16 MiB": sized(20, 16),
    "20 GiB in 8 MiB": sized(20, 8),
    "2 GiB in 8 MiB": sized(2, 8),
    "2 GiB in 4 MiB": sized(2, 4),
}
"""Without another number 5% of the actors are lost in the time of a shard of 16 MiB."""


def render_tails(runs: int) -> str:
    """Return a table of tails: median and worst of some runs."""
    lines = ["| 64 actors | " + " | ".join(CLUSTERS) + " |"]
    lines += ["| --- |" + " ---: |" * len(CLUSTERS)]
    for rule in RULES:
        cells = []
        for cluster in CLUSTERS.values():
            found = [job.tail for job in tails(cluster, rule, runs)]
            cells.append(f"{statistics.median(found):.1%} ({max(found):.1%})")
        lines.append(f"| {rule.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
