"""What the scoring stage left: the sum of its shards' markers. The manifest keeps it, for pruning again.

The shards of a job through the scoring pool: encode, score, commit, and what becomes of those that fail.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from qtune_service.config import JobSpec
from qtune_service.errors import EngineError, ShardFailedError
from qtune_service.importing import import_transformers_without_torch
from qtune_service.output.file_lists import part_files
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.ray_cluster import LIGHT_CPUS, Cluster, Pool, Stage, stream
from qtune_service.pipeline.retries import Guard
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import JobContext, ScoreShard, commit_shard, encode_shard, reject_shard
from qtune_service.scoring.process_environment import allocator_environment

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Scored:
    """All score shards of a job."""

    shards: dict[int, int]
    """Shard index -> scored rows; shards without any have no file and are left out."""
    read: int
    rejected: int
    reasons: Counts
    rejected_by_source: dict[str, Counts]
    """Source -> reason -> records."""
    rejected_by_category: dict[str, Counts]
    truncated: int
    tokens: int
    """All tokens that went through the model."""
    trained_tokens: int
    engine: dict[str, Any]
    """EngineInfo of the actors; empty where nothing was scored."""
    template: str
    """How conversations were rendered."""
    own_columns: dict[str, str] = field(default_factory=dict)
    """The records' own columns: name in scores/ -> name in the records."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Column in scores/ -> column in pruned/, where these differ."""
    category_column: str | None = None
    """Column of scores/ that holds the category."""
    performance: dict[str, float] = field(default_factory=dict)
    """See `measure`; empty where nothing was left to score."""
    files: tuple[dict[str, Any], ...] = ()

    @property
    def num_samples(self) -> int:
        """Scored samples."""
        return self.read - self.rejected

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest, without the files, which the manifest lists itself."""
        body = asdict(self)
        del body["files"], body["performance"]
        return {**body, "shards": {str(index): rows for index, rows in self.shards.items()}}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Scored:
        """Read back what `to_dict` wrote."""
        body = dict(manifest["scoring"])
        shards = {int(index): rows for index, rows in body.pop("shards").items()}
        files = tuple(file.to_dict() for file in part_files(manifest, "scores", "rejected"))
        return cls(shards=shards, files=files, **body)


def summarise(
    markers: Mapping[int, Mapping[str, Any]],
    *,
    template: str,
    own_columns: dict[str, str],
    renamed: dict[str, str],
    category_column: str | None,
    performance: dict[str, float],
) -> Scored:
    """Add up the markers of all shards. Raises EngineError where two engines scored one output."""
    ordered = [markers[index] for index in sorted(markers)]
    engines = {(m["engine"]["name"], m["engine"]["version"]): m["engine"] for m in ordered if m["engine"]}
    if len(engines) > 1:
        raise EngineError(
            f"the shards were scored by different engines: {', '.join(' '.join(e) for e in sorted(engines))}",
            "Choose one with --engine, and start anew with --overwrite.",
        )
    return Scored(
        shards={index: markers[index]["scored"] for index in sorted(markers) if markers[index]["scored"]},
        read=sum(m["read"] for m in ordered),
        rejected=sum(m["rejected"] for m in ordered),
        reasons=add_counts(m["reasons"] for m in ordered),
        rejected_by_source=add_tables(m["rejected_by_source"] for m in ordered),
        rejected_by_category=add_tables(m["rejected_by_category"] for m in ordered),
        truncated=sum(m["truncated"] for m in ordered),
        tokens=sum(m["tokens"] for m in ordered),
        trained_tokens=sum(m["trained_tokens"] for m in ordered),
        engine=next(iter(engines.values()), {}),
        template=template,
        own_columns=own_columns,
        renamed=renamed,
        category_column=category_column,
        performance=performance,
        files=tuple(f for m in ordered for f in m["files"]),
    )


def measure(markers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Speed of this run, from the shards that it scored.

    startup_s: from the start of this process to the first engine's first shard; score_s: from there until the last
    shard was written; engine_busy_share: of the time of each actor, from its first shard on, the share in which it
    scored; tail_s: how long the first actor to run out of shards waited for the last one; encode_s: seconds of all
    encoding tasks.
    """
    scored = [m for m in markers if m["engine"]]
    if not scored:
        return {}
    began_s, ended_s = min(m["started_at_s"] for m in scored), max(m["committed_at_s"] for m in scored)
    score_s, tokens = ended_s - began_s, sum(m["tokens"] for m in scored)
    first_s: dict[str, float] = {}  # by actor: when its first shard began, and when its last one was scored
    last_s: dict[str, float] = {}
    for m in scored:
        first_s[m["actor"]] = min(m["started_at_s"], first_s.get(m["actor"], ended_s))
        last_s[m["actor"]] = max(m["started_at_s"] + m["engine_s"], last_s.get(m["actor"], began_s))
    return {
        "startup_s": round(began_s - psutil.Process().create_time(), 3),
        "score_s": round(score_s, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / score_s, 1),
        "engine_busy_share": round(sum(m["engine_s"] for m in scored) / sum(ended_s - s for s in first_s.values()), 4),
        "tail_s": round(max(last_s.values()) - min(last_s.values()), 3),
        "encode_s": round(sum(m["encode_s"] for m in scored), 3),
        "actors": len(first_s),
        "nodes": len({actor.partition(":")[0] for actor in first_s}),
    }


def add_counts(counts: Iterable[Mapping[str, int]]) -> Counts:
    """Sum counts by name."""
    total: Counter[str] = Counter()
    for c in counts:
        total.update(c)
    return dict(total)


def add_tables(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, Counts]:
    """Sum counts by name within each name."""
    total: dict[str, Counter[str]] = {}
    for table in tables:
        for name, counts in table.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in total.items()}


HOPELESS = 3
"""The job ends at once if more shards than that fail one after the other, without a success between them."""

Marker = dict[str, Any]
"""What a finished shard holds; see commit_shard."""


@dataclass(slots=True)
class Scoring:
    """One run over the shards that are not scored yet."""

    spec: JobSpec
    context: JobContext
    guard: Guard
    pool: Pool
    nodes: Cluster
    tracker: Tracker
    stop: Stop
    _markers: dict[int, Marker] = field(default_factory=dict)
    _failed: dict[int, str] = field(default_factory=dict)
    """Shards that failed for good, and with what."""

    def run(self, todo: list[int]) -> dict[int, Marker]:
        """Score shards; the markers of all that were scored.

        Raises EngineError, at the end or where nothing but failures comes, if more shards fail than `limits` allows.
        """
        arrived: set[int] = set()
        failed_in_a_row = 0
        with self.stop.saving(self.guard.stop, arrived, self.spec.limits.stop_grace_s):
            for arrival in stream([(index, b"") for index in todo], *self._stages(len(todo)), guard=self.guard):
                arrived.add(arrival.shard)
                if isinstance(arrival.problem, ShardFailedError):
                    failed_in_a_row += 1
                    self._note_failed(arrival.shard, arrival.problem.message, failed_in_a_row)
                elif arrival.problem is None:
                    failed_in_a_row = 0
                    self._note_scored(arrival.shard, json.loads(arrival.payload))
        if len(self._failed) > self.spec.limits.max_failed_shards:
            raise self._too_many(f"{len(self._failed)} of {len(todo)} shards")
        return self._markers

    def reject_failed(self) -> dict[int, Marker]:
        """Reject the records of failed shards; their markers."""
        max_tasks = self.nodes.max_tasks(len(self._failed))
        stage = Stage("reject", reject_shard, (self.context,), num_cpus=LIGHT_CPUS, max_tasks=max_tasks)
        items = [(shard, problem.encode()) for shard, problem in self._failed.items()]
        return {arrival.shard: json.loads(arrival.payload) for arrival in stream(items, stage)}

    def _stages(self, num_shards: int) -> Iterable[Stage]:
        context, pool = self.context, self.pool
        size = (min(pool.min_actors, max(num_shards, 1)), pool.max_actors and min(pool.max_actors, max(num_shards, 1)))
        max_tasks = self.nodes.max_tasks(num_shards)
        if max_tasks is None and not pool.gpus:
            max_tasks = pool.max_actors  # Ray Data would grant unbounded tasks the CPUs that the pool is to grow into
        light: dict[str, Any] = {"num_cpus": LIGHT_CPUS, "max_tasks": max_tasks}
        # A tokenizer with code of its own may want torch.
        setup = None if self.spec.model.trust_remote_code else import_transformers_without_torch
        heavy: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "pool": size}
        environment = {} if pool.gpus else allocator_environment()
        return (
            Stage("encode", encode_shard, (context,), setup=setup, **light),
            Stage("score", ScoreShard, (context,), environment=environment, **heavy),
            Stage("commit", commit_shard, (context,), is_closing=True, **light),
        )

    def _note_scored(self, shard: int, marker: Marker) -> None:
        if not self._markers:
            self.tracker.say(f"engine: {marker['engine']['name']} ({marker['engine']['reason']})")
        self._markers[shard] = marker
        self.tracker.advance(marker["read"], tokens=marker["tokens"], rejected=marker["rejected"])

    def _note_failed(self, shard: int, problem: str, failed_in_a_row: int) -> None:
        """Say it, and give up early where nothing but failures comes."""
        self._failed[shard] = problem
        self.tracker.say(f"failed: {problem}")
        if len(self._failed) > self.spec.limits.max_failed_shards and failed_in_a_row > HOPELESS:
            raise self._too_many(f"{failed_in_a_row} shards in a row")

    def _too_many(self, what: str) -> EngineError:
        failed = self._failed
        return EngineError(
            f"{what} failed, each {self.spec.limits.max_shard_attempts} times or for good: "
            + "; ".join(failed[shard] for shard in sorted(failed)[:3]),
            "All others are scored and safe. Run the same command again to try these again, or put up with their loss: "
            f"--max-failed-shards {len(failed)} rejects their records.",
        )
