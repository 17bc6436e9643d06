"""The whole job on one screen: plan, score, find thresholds, prune, write the results.

Whatever finished stays: planning is done once, a scored or pruned shard is never done again, and the manifest, written
last, says that the output is complete. The same call on the same output continues.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from qtune_service.config import JobSpec, PruneSpec
from qtune_service.core.plane import QuadrantRule
from qtune_service.data import storage
from qtune_service.data.chat import Encoder
from qtune_service.data.shards import Chunk, ChunkScan, Plan, is_enough, make_plan, split
from qtune_service.data.sources import discover
from qtune_service.errors import DataError, EngineError, ShardFailedError
from qtune_service.pipeline import cluster
from qtune_service.pipeline.cluster import Cluster, Pool, Stage, run_here, stream
from qtune_service.pipeline.finish import Pruned, finish_pruned, finish_scored
from qtune_service.pipeline.group_tasks import Ground
from qtune_service.pipeline.model_info import describe_model, local_folder
from qtune_service.pipeline.origin import adopt_scores, save_tokenizer
from qtune_service.pipeline.output import Output
from qtune_service.pipeline.population import Population, ScoreShards
from qtune_service.pipeline.portable import portable
from qtune_service.pipeline.progress import FileSink, Sink, Tracker
from qtune_service.pipeline.rounds import work
from qtune_service.pipeline.rules import load_rule
from qtune_service.pipeline.scored import Scored, measure, summarise
from qtune_service.pipeline.stages import (
    JobContext,
    ScoreShard,
    commit_shard,
    encode_shard,
    prepare,
    prune_shard,
    reject_shard,
    scan_chunk,
)
from qtune_service.pipeline.stopping import Stop
from qtune_service.pipeline.supervision import Guard, start_supervisor
from qtune_service.pipeline.tables import own_names, pruned_names
from qtune_service.pipeline.thresholds import Verdict, find_thresholds
from qtune_service.scoring.environment import allocator_environment
from qtune_service.torchless import import_transformers_without_torch

LIGHT_CPUS = 0.5
"""CPUs of a task beside the engine. Unlike the actor's, or Ray Data would fuse encoding into the actor."""
HOPELESS = 3
"""The job ends at once if more shards than that fail one after the other, without a success between them."""
SMALL_INPUT_BYTES = 32 << 20
"""Input that the driver scans itself, in less time than a worker takes to start."""
SCAN_WAVE = 64
"""Chunks scanned before looking whether `limit` is reached."""

Marker = dict[str, Any]
"""What a finished shard holds; see commit_shard."""


def run_job(
    spec: JobSpec, sink: Sink, *, ray_address: str | None = None, overwrite: bool = False, stop: Stop | None = None
) -> dict[str, Any]:
    """Run a job, or continue it, and return its manifest. Raises QTuneError, and SystemExit where `stop` was asked."""
    spec = portable(spec)
    output = Output(spec.output.path)
    with output.locked(sink.say):
        if overwrite:
            output.clear()
        tracker = Tracker(sink, FileSink(output.note_progress))
        return _Job(spec, output, tracker, ray_address, stop or Stop()).run()


@dataclass(frozen=True, slots=True)
class _Job:
    spec: JobSpec
    output: Output
    tracker: Tracker
    ray_address: str | None
    stop: Stop

    def run(self) -> dict[str, Any]:
        """The story."""
        rule = load_rule(self.spec.prune.quadrant_rule) if self.spec.prune else None
        self.tracker.stage("prepare", 1, unit="steps")
        if (manifest := self.output.manifest) is not None:
            self.output.claim(self.spec, "" if self.spec.from_scores else describe_model(self.spec.model).fingerprint)
            self.tracker.say(f"{self.output.root} is already complete; nothing to do.")
            return manifest
        try:
            scored = self._adopt() if self.spec.from_scores else self._score()
            self._check_rejected(scored)
            if self.spec.prune is None:
                return finish_scored(self.spec, self.output, scored, self.tracker)
            verdict = self._find_thresholds(scored, self.spec.prune, rule)
            markers = self._prune(scored, verdict)
            return finish_pruned(self.spec, self.output, scored, Pruned(verdict, markers), self.tracker)
        finally:
            cluster.disconnect()
            self.tracker.close()

    def _adopt(self) -> Scored:
        """Take over the scores of an earlier output."""
        self.output.claim(self.spec, "")
        return adopt_scores(self.spec, self.output)

    # --- plan

    def _plan(self, nodes: Cluster) -> Plan:
        """The plan of this output; made once, and checked against the files as they are now."""
        uri = self.output.at("_qtune", "plan.json")
        files = discover(self.spec.input.paths)
        if storage.stat(uri) is not None:
            plan = Plan.from_json(storage.read_bytes(uri).decode())
            plan.verify_unchanged(files)
            return plan
        chunks = split(files, self.spec.input)
        plan = make_plan(files, chunks, self._scan(chunks, nodes), self.spec.input)
        storage.write_bytes(uri, plan.to_json().encode())
        return plan

    def _scan(self, chunks: list[Chunk], nodes: Cluster) -> list[ChunkScan]:
        """Scan the input; under `limit` in waves, and no further than needed. A small one here, without workers."""
        spec = self.spec.input
        self.tracker.stage("plan", len(chunks), unit="chunks")
        max_tasks = nodes.max_tasks(len(chunks))
        stage = Stage("plan", scan_chunk, (self.spec,), num_cpus=LIGHT_CPUS, max_tasks=max_tasks)
        is_small = sum({chunk.file.uri: chunk.file.size_bytes for chunk in chunks}.values()) <= SMALL_INPUT_BYTES
        wave = len(chunks) if spec.limit is None else SCAN_WAVE
        scans: list[ChunkScan] = []
        while len(scans) < len(chunks) and not is_enough(scans, spec):
            todo = chunks[len(scans) : len(scans) + wave]
            items = [(chunk.index, pickle.dumps(chunk)) for chunk in todo]
            arrivals = run_here(items, stage) if is_small else stream(items, stage)
            found = {}
            for arrival in arrivals:
                found[arrival.shard] = pickle.loads(arrival.payload)  # noqa: S301 - written by `scan_chunk` of this job
                self.tracker.advance(1)
            scans += [found[chunk.index] for chunk in todo]
        return scans

    # --- score

    def _connect(self) -> Cluster:
        nodes = cluster.connect(self.ray_address)
        self.stop.install_again()
        cluster.watch_head(self.stop.fail)
        return nodes

    def _start(self) -> tuple[JobContext, Encoder, Cluster]:
        """What takes seconds to start, side by side; what is quickly seen to be wrong, first."""
        discover(self.spec.input.paths)
        local_folder(self.spec.model.name)
        with ThreadPoolExecutor(1) as thread:
            preparing = thread.submit(prepare, self.spec)
            nodes = self._connect()
            return *preparing.result(), nodes

    def _score(self) -> Scored:
        """Score the shards that are not finished."""
        context, encoder, nodes = self._start()
        self.output.claim(self.spec, context.model.fingerprint)
        save_tokenizer(encoder, self.output)
        plan = self._plan(nodes)
        markers = self.output.finished("scored")
        pool = cluster.size_pool(self.spec.engine, nodes)
        resumed = sum(m["read"] for m in markers.values())
        if markers:
            self.tracker.say(f"continuing: {len(markers)} of {len(plan.shards)} shards are already scored")
        self.tracker.stage("score", plan.num_records, unit="samples", resumed=resumed, actors=pool.max_actors)
        guard = Guard(start_supervisor(), self.spec.limits.max_shard_attempts)
        context = replace(context, threads=pool.threads, guard=guard, partials=self.output.partials())
        todo = [index for index in range(len(plan.shards)) if index not in markers]
        fresh, failed = self._score_shards(todo, context, pool, nodes)
        markers |= fresh
        if failed:
            markers |= self._put_up_with(failed, plan, context, nodes)
        category = self.spec.input.category_field
        return summarise(
            markers,
            template=encoder.template_description,
            renamed=pruned_names(plan),
            category_column=own_names(plan)[category] if category else None,
            performance=measure(list(fresh.values())),
        )

    def _score_shards(
        self, todo: list[int], context: JobContext, pool: Pool, nodes: Cluster
    ) -> tuple[dict[int, Marker], dict[int, str]]:
        """Score shards: the markers of those that are done, and what the others failed with."""
        size = (min(pool.min_actors, max(len(todo), 1)), min(pool.max_actors, max(len(todo), 1)))
        scorer = Stage("score", ScoreShard, (context,), num_cpus=pool.cpus, num_gpus=pool.gpus, pool=size)
        max_tasks = nodes.max_tasks(len(todo))
        encode = Stage("encode", encode_shard, (context,), num_cpus=LIGHT_CPUS, max_tasks=max_tasks)
        commit = Stage("commit", commit_shard, (context,), num_cpus=LIGHT_CPUS, max_tasks=max_tasks)
        if not self.spec.model.trust_remote_code:  # a tokenizer with code of its own may want torch
            encode = replace(encode, setup=import_transformers_without_torch)
        if not pool.gpus:
            scorer = replace(scorer, environment=allocator_environment())
        stages = (encode, scorer, replace(commit, is_closing=True))
        fresh: dict[int, Marker] = {}
        failed: dict[int, str] = {}
        arrived: set[int] = set()
        failed_in_a_row = 0
        assert context.guard is not None
        with self.stop.saving(context.guard.stop, arrived, self.spec.limits.stop_grace_s):
            for arrival in stream([(index, b"") for index in todo], *stages, guard=context.guard):
                arrived.add(arrival.shard)
                if isinstance(arrival.problem, ShardFailedError):
                    failed[arrival.shard] = arrival.problem.message
                    failed_in_a_row += 1
                    self._note_failed(failed, arrival.problem.message, failed_in_a_row)
                elif arrival.problem is None:
                    failed_in_a_row = 0
                    marker = fresh[arrival.shard] = json.loads(arrival.payload)
                    if len(fresh) == 1:
                        self.tracker.say(f"engine: {marker['engine']['name']} ({marker['engine']['reason']})")
                    self.tracker.advance(marker["read"], tokens=marker["tokens"], rejected=marker["rejected"])
        return fresh, failed

    def _note_failed(self, failed: Mapping[int, str], problem: str, failed_in_a_row: int) -> None:
        """Say it, and give up early where nothing but failures comes."""
        self.tracker.say(f"failed: {problem}")
        if len(failed) > self.spec.limits.max_failed_shards and failed_in_a_row > HOPELESS:
            raise self._too_many(failed, f"{failed_in_a_row} shards in a row")

    def _too_many(self, failed: Mapping[int, str], what: str) -> EngineError:
        return EngineError(
            f"{what} failed, each {self.spec.limits.max_shard_attempts} times or for good: "
            + "; ".join(failed[shard] for shard in sorted(failed)[:3]),
            "All others are scored and safe. Run the same command again to try these again, or put up with their loss: "
            f"--max-failed-shards {len(failed)} rejects their records.",
        )

    def _put_up_with(
        self, failed: Mapping[int, str], plan: Plan, context: JobContext, nodes: Cluster
    ) -> dict[int, Marker]:
        """Reject the records of failed shards, as far as `limits` allows. Raises EngineError beyond."""
        if len(failed) > self.spec.limits.max_failed_shards:
            raise self._too_many(failed, f"{len(failed)} of {len(plan.shards)} shards")
        stage = Stage("reject", reject_shard, (context,), num_cpus=LIGHT_CPUS, max_tasks=nodes.max_tasks(len(failed)))
        items = [(shard, problem.encode()) for shard, problem in failed.items()]
        return {arrival.shard: json.loads(arrival.payload) for arrival in stream(items, stage)}

    def _check_rejected(self, scored: Scored) -> None:
        ratio = scored.rejected / scored.read
        reasons = sorted(scored.reasons.items(), key=lambda item: -item[1])
        worst = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:3])
        where = f"Their lines and reasons are in {self.output.at('rejected')}."
        if scored.num_samples == 0:
            raise DataError(f"none of {scored.read:,} records could be scored: {worst}", where)
        if ratio > self.spec.limits.max_rejected_ratio:
            raise DataError(
                f"{scored.rejected:,} of {scored.read:,} records ({ratio:.1%}) were rejected: {worst}",
                f"{where} To go on all the same, run again with --max-rejected-ratio above {ratio:.3f}.",
            )

    # --- thresholds and prune

    def _find_thresholds(self, scored: Scored, prune: PruneSpec, rule: QuadrantRule | None) -> Verdict:
        """Thresholds of all samples, and each one's label."""
        self.tracker.stage("thresholds", scored.num_samples, unit="samples")
        if self.spec.from_scores:
            self._connect()

        def workers(items: Sequence[tuple[int, bytes]], ground: Ground) -> Iterator[tuple[int, bytes]]:
            for arrival in stream(items, Stage("thresholds", work, (ground,))):
                yield arrival.shard, arrival.payload

        return find_thresholds(
            Population.of(ScoreShards(self.output.root), scored.shards),
            prune,
            rule=rule,
            workers=workers,
            folder=self.output.at("_qtune", "ranks"),
            advance=self.tracker.advance,
        )

    def _prune(self, scored: Scored, verdict: Verdict) -> dict[int, dict[str, Any]]:
        """Prune the shards that are not finished; returns the markers of all."""
        markers = self.output.finished("pruned")
        self.tracker.stage("prune", len(scored.shards), resumed=len(markers))

        def items() -> Any:
            for shard, (group, span) in verdict.shards().items():
                if shard not in markers:
                    picks = verdict.picks.within(group.start + span.start, span.stop - span.start)
                    yield shard, pickle.dumps((verdict.placement(group, span), *picks))

        stage = Stage("prune", prune_shard, (self.spec, scored.renamed, scored.category_column), num_cpus=LIGHT_CPUS)
        for arrival in stream(items(), stage):
            markers[arrival.shard] = json.loads(arrival.payload)
            self.tracker.advance(1)
        return {index: markers[index] for index in sorted(markers)}
