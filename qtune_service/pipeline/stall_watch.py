"""Say what a job waits for: nodes, actors of other jobs, the loading of a model, a long shard, or an actor that hangs.

A thread of the driver looks at the scoring actors' states (actor_states.py) and at the cluster (cluster_state.py) every
second, and passes one sentence to the tracker: `waiting for 8 GPUs (0 of 8; 8 in use by other jobs), 41 min`. Waiting
never ends a job. An actor that has finished no sample for longer than `limits.stall_s` is reported as hanging.

Ages of actors are measured by the supervisor, and all others by the driver. Times of two clocks are never subtracted.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qtune_service.ingest.plan import ALL_ROWS, Chunk
from qtune_service.pipeline.actor_states import ENDED, ActorState
from qtune_service.pipeline.cluster_state import ClusterState, Kind
from qtune_service.pipeline.executor import Executor, Pool
from qtune_service.pipeline.progress import Observation, Tracker
from qtune_service.pipeline.retries import SupervisorHandle

LOOK_EVERY_S, ANSWER_LIMIT_S, JOIN_S = 1.0, 5.0, 2.0
NOTICE_S, IDLE_S, LONG_SHARD_S = 2.0, 10.0, 60.0
"""Shorter pauses are not worth a sentence: of any kind, of actors or stages without a result, of actors that score."""
MAX_NAME_CHARS = 200
_log = logging.getLogger(__name__)

Reason: TypeAlias = Literal["resources", "loading", "shards", "scoring", "hanging", "reading", "steps"]
"""resources: nodes, or resources that other jobs use. loading: actors start. shards: no shard is encoded yet. scoring:
a long shard. hanging: no scoring actor moves. reading: a large file is planned. steps: another stage takes long."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a job waits for."""

    reason: Reason
    text: str
    """The sentence without its duration."""
    seconds: float | None = None
    """How long, or None where the watch measures it."""


Look: TypeAlias = Callable[[float], "tuple[Waiting | None, Observation]"]
"""Called with the seconds since a unit was finished."""


# --- the thread


@contextlib.contextmanager
def watching(tracker: Tracker, look: Look, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """Watch a job while the block runs: show every `every_s` seconds what `look` returns."""
    ended = threading.Event()
    clock = _Since()
    most_actors = 0

    def watch() -> None:
        nonlocal most_actors
        while not ended.wait(every_s):
            try:
                waiting, seen = look(tracker.quiet_s)
            except Exception as error:  # noqa: BLE001 - an edge: a cluster that does not answer now may answer again
                _log.debug("no look at the cluster: %s", error)
                continue
            most_actors = max(most_actors, seen.actors)
            if not ended.is_set():
                tracker.observe(clock.complete(waiting, seen))

    thread = threading.Thread(target=watch, daemon=True, name="stall watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(JOIN_S)
        tracker.observe(Observation(actors=most_actors))


@dataclass(slots=True)
class _Since:
    """Measures how long each kind of waiting lasts."""

    _reason: str = ""
    _began_s: float = 0.0

    def complete(self, waiting: Waiting | None, seen: Observation) -> Observation:
        """Return an observation with the sentence, unless it is too early for one."""
        now = time.monotonic()
        if waiting is None or waiting.reason != self._reason:
            self._reason, self._began_s = ("", now) if waiting is None else (waiting.reason, now)
        if waiting is None:
            return seen
        seconds = now - self._began_s if waiting.seconds is None else waiting.seconds
        if seconds < NOTICE_S:
            return seen
        sentence = f"{waiting.text}, {duration(seconds)}"
        return Observation(sentence, waiting.reason, seconds, seen.actors, seen.phases, seen.problems)


def duration(seconds: float) -> str:
    """Return a duration as text: `12 s`, `41 min`, `3 h 05 min`."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole // 60 % 60:02} min"


# --- scoring


@dataclass(slots=True)
class ScoringLook:
    """Looks at the actors and the cluster while shards are scored."""

    executor: Executor
    supervisor: SupervisorHandle
    pool: Pool
    num_shards: int
    stall_s: float
    say: Callable[[str], None]
    _had_actors: bool = False
    _hanging: dict[tuple[str, int | None], None] = field(default_factory=dict)
    """Actors, and their shards, that were reported as hanging."""

    def __call__(self, quiet_s: float) -> tuple[Waiting | None, Observation]:
        """Return what the job waits for, and what its actors do. Report actors that begin or cease to hang."""
        cluster = self.executor.cluster_state()
        reported: list[ActorState] = self.supervisor.call("actors", timeout_s=ANSWER_LIMIT_S)
        present = [actor for actor in reported if _is_present(actor, cluster)]
        hanging = [actor for actor in present if actor.phase == "scoring" and actor.age_s > self.stall_s]
        self._report(hanging, cluster)
        ended = [actor for actor in reported if actor.phase in ENDED]
        problems = [_hanging_text(actor, cluster) for actor in hanging]
        seen = Observation(
            actors=len(present),
            phases=dict(Counter(actor.phase for actor in [*present, *ended])),
            problems=tuple(problems),
        )
        self._had_actors = self._had_actors or bool(present)
        is_over = self._had_actors and not present and not (cluster and (cluster.placed or cluster.unplaced))
        if is_over:  # Ray Data ends its actors with the last shard
            return (Waiting("shards", "writing the last shards", quiet_s) if quiet_s > IDLE_S else None), seen
        wanted = min(self.pool.min_actors, self.num_shards)
        return what_scoring_waits_for(present, cluster, self.pool, wanted, quiet_s, self.stall_s), seen

    def _report(self, hanging: Sequence[ActorState], cluster: ClusterState | None) -> None:
        now = {(actor.name, actor.shard): actor for actor in hanging}
        for key, actor in now.items():
            if key not in self._hanging:
                process = actor.name.rpartition(":")[2]
                self.say(
                    f"warning: {_hanging_text(actor, cluster)}. The job continues to wait. To have the shard scored by "
                    f"another actor, end process {process} on {_host(actor, cluster)}."
                )
        for name, shard in self._hanging.keys() - now.keys():
            self.say(f"actor {name} no longer hangs in shard {shard}")
        self._hanging = dict.fromkeys(now)


def what_scoring_waits_for(
    present: Sequence[ActorState],
    cluster: ClusterState | None,
    pool: Pool,
    wanted: int,
    quiet_s: float,
    stall_s: float,
) -> Waiting | None:
    """Return what scoring waits for, or None while it makes progress.

    present: the actors that have not ended. wanted: how many actors the pool has at least. quiet_s: seconds since a
    shard was finished. stall_s: an actor without a finished sample for longer hangs.
    """
    scoring = [actor for actor in present if actor.phase == "scoring"]
    starting = [actor for actor in present if actor.phase == "starting"]
    short = _shortage(cluster, pool, wanted) if cluster is not None and cluster.unplaced else ""
    if scoring:
        return _scoring(scoring, cluster, quiet_s, stall_s)
    if len(starting) < len(present):
        text = f"{_number(len(present) - len(starting), 'actor')} without work: shards are being encoded or written"
        return Waiting("shards", text, quiet_s) if quiet_s > IDLE_S else None
    if starting:
        return _loading(starting, cluster, short)
    if short:
        return Waiting("resources", f"waiting for {short}")
    if cluster is not None and (cluster.placed or cluster.unplaced):
        return Waiting(
            "loading", f"starting the {'process' if wanted == 1 else 'processes'} of {_number(wanted, 'actor')}"
        )
    return Waiting("shards", "waiting for the first encoded shard")


def _scoring(
    scoring: Sequence[ActorState], cluster: ClusterState | None, quiet_s: float, stall_s: float
) -> Waiting | None:
    longest = max(scoring, key=lambda actor: actor.phase_s)
    last = min(scoring, key=lambda actor: actor.age_s)
    if last.age_s > stall_s:
        text = f"no scoring actor has finished a sample: shard {last.shard} on {_host(last, cluster)}"
        return Waiting("hanging", text + (f" and {len(scoring) - 1:,} more" if len(scoring) > 1 else ""), last.age_s)
    if quiet_s < LONG_SHARD_S:
        return None
    text = f"scoring shard {longest.shard} on {_host(longest, cluster)}"
    if len(scoring) > 1:
        text = f"{len(scoring):,} actors are scoring long shards, the longest: shard {longest.shard}"
    return Waiting("scoring", text, min(longest.phase_s, quiet_s))


def _loading(starting: Sequence[ActorState], cluster: ClusterState | None, short: str) -> Waiting:
    slowest = max(starting, key=lambda actor: actor.phase_s)
    what = slowest.detail[:MAX_NAME_CHARS] or "loading the model"
    hosts = sorted({_host(actor, cluster) for actor in starting})
    where = f"on {hosts[0]}" if len(hosts) == 1 else f"on {len(hosts):,} nodes"
    text = f"{_number(len(starting), 'actor')} {'is' if len(starting) == 1 else 'are'} {what} {where}"
    return Waiting("loading", f"{text}; waiting for {short}" if short else text, slowest.phase_s)


def _shortage(cluster: ClusterState, pool: Pool, wanted: int) -> str:
    """Return which resources are missing for further actors: `8 GPUs (0 of 8)`. Empty where there is room for them."""
    kind: Kind
    have = len(cluster.placed)
    missing = wanted - have
    if pool.bundles:  # they may be on several nodes
        kind, each = "GPU", sum(bundle.get("GPU", 0.0) for bundle in pool.bundles)
        room, largest = math.floor(cluster.free(kind) / each), each
    else:
        need: dict[Kind, float] = {kind: amount for kind, amount in _needs(pool) if amount}
        kind = "GPU" if pool.gpus and _room(cluster, {"GPU": pool.gpus}) < missing else "CPU"
        each, room, largest = need[kind], _room(cluster, need), cluster.largest(kind)
    if room >= missing:
        return ""
    in_use = cluster.total(kind) - cluster.free(kind) - have * each
    by_others = min(in_use, cluster.others.get(kind, 0.0))
    notes = [f"{(have + room) * each:g} of {wanted * each:g}"]
    if largest < each and cluster.total(kind) > 0:
        notes.append(f"the largest node has {largest:g}")
    elif by_others > 0:
        notes.append(f"{by_others:g} in use by other jobs")
    elif in_use > 0:
        notes.append(f"{in_use:g} in use")
    more = " more" if have else ""
    return f"{missing * each:g}{more} {kind}{'s' if missing * each != 1 else ''} ({'; '.join(notes)})"


def _needs(pool: Pool) -> tuple[tuple[Kind, float], ...]:
    return ("GPU", pool.gpus), ("CPU", pool.cpus)


def _room(cluster: ClusterState, need: dict[Kind, float]) -> int:
    return sum(node.room(need) for node in cluster.nodes.values())


def _is_present(actor: ActorState, cluster: ClusterState | None) -> bool:
    """Return whether an actor works. Those of lost nodes and killed processes report nothing more."""
    return actor.phase not in ENDED and (cluster is None or actor.name in cluster.placed)


def _host(actor: ActorState, cluster: ClusterState | None) -> str:
    return actor.node if cluster is None else cluster.host(actor.name)


def _hanging_text(actor: ActorState, cluster: ClusterState | None) -> str:
    return (
        f"actor {actor.name} on {_host(actor, cluster)} has finished no sample of shard {actor.shard} for "
        f"{duration(actor.age_s)}"
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# --- other stages


def steps_look(executor: Executor, cpus: float, text: Callable[[], tuple[Reason, str]]) -> Look:
    """Return a look at a stage of tasks that need `cpus` each. text: returns what takes long, where something does."""

    def look(quiet_s: float) -> tuple[Waiting | None, Observation]:
        if quiet_s < IDLE_S:
            return None, Observation()
        cluster = executor.cluster_state()
        if cluster is not None and (short := _task_shortage(cluster, cpus)):
            return Waiting("resources", f"waiting for {short}", quiet_s), Observation()
        return Waiting(*text(), quiet_s), Observation()

    return look


def reading_text(unread: Iterable[Chunk]) -> str:
    """Return which chunk takes longest to plan. Most compressed files are one chunk."""
    chunks = list(unread)
    if not chunks:
        return "making the plan"
    largest = max(
        chunks, key=lambda chunk: chunk.file.size_bytes if chunk.file.is_in_rows else chunk.stop - chunk.start
    )
    if largest.file.is_in_rows:
        size = "all rows" if largest.stop >= ALL_ROWS else f"rows {largest.start:,} to {largest.stop:,}"
    else:
        num_bytes = largest.stop - largest.start
        size = f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
    is_stream = largest.file.compression is not None and not largest.is_part
    how = f"{size}, compressed, so in one piece" if is_stream else size
    more = f" and {_number(len(chunks) - 1, 'more part')}" if len(chunks) > 1 else ""
    return f"reading {largest.file.name[-MAX_NAME_CHARS:]} ({how}){more}"


def _task_shortage(cluster: ClusterState, cpus: float) -> str:
    """Return why no task of a stage can run. Its own tasks use CPUs too, so only other jobs' actors count."""
    total, others = cluster.total("CPU"), cluster.others.get("CPU", 0.0)
    amount = f"{cpus:g} CPU{'s' if cpus > 1 else ''}"
    if cluster.lacks_cpu_nodes and cpus > 0:
        return "a node for CPU work (0 of 1)"
    if cluster.largest("CPU") < cpus:
        return f"{amount} (the cluster has {total:g})"
    is_taken = total - others < cpus and cluster.free("CPU") < cpus
    return f"{amount} ({total:g} in use by other jobs)" if is_taken else ""
