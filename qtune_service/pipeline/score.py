"""The shards of a job through the scoring pool: encode, score, commit, and what becomes of those that fail."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qtune_service.config import JobSpec
from qtune_service.errors import EngineError, ShardFailedError
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.ray_cluster import LIGHT_CPUS, Cluster, Pool, Stage, stream
from qtune_service.pipeline.retries import Guard
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import JobContext, ScoreShard, commit_shard, encode_shard, reject_shard
from qtune_service.scoring.process_environment import allocator_environment
from qtune_service.torchless import import_transformers_without_torch

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
