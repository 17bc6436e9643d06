"""The whole job on one screen: plan, score, find thresholds, prune, write the results.

Whatever finished stays: planning is done once, a scored or pruned shard is never done again, and the manifest, written
last, says that the output is complete. The same call on the same output continues.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from qtune_service.config import JobSpec, PruneSpec
from qtune_service.errors import DataError, QTuneError
from qtune_service.ingest.discovery import discover
from qtune_service.output.layout import Output
from qtune_service.output.removal import clear
from qtune_service.pipeline import ray_cluster
from qtune_service.pipeline.distributed_selection import work
from qtune_service.pipeline.manifest import Pruned, finish_pruned, finish_scored
from qtune_service.pipeline.population import Population, ScoreShards
from qtune_service.pipeline.prepare import adopt_scores, load_rule, plan_shards, portable, save_tokenizer
from qtune_service.pipeline.progress import FileSink, Sink, Tracker
from qtune_service.pipeline.ray_cluster import LIGHT_CPUS, Cluster, Stage, run_here, stream
from qtune_service.pipeline.retries import Guard, start_supervisor
from qtune_service.pipeline.score_stage import Scored, Scoring, measure, summarise
from qtune_service.pipeline.selection_stage import SelectionResult, find_thresholds
from qtune_service.pipeline.selection_tasks import SelectionContext
from qtune_service.pipeline.shard_tables import own_names, pruned_names
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import JobContext, prepare, prune_shard
from qtune_service.scoring.model_config import describe_model, local_folder
from qtune_service.selection.plane import QuadrantRule
from qtune_service.tokenize.encoder import Encoder

SMALL_TOKENS = 1 << 23
"""Tokens that are pruned without starting a cluster: some seconds of one core."""


def run_job(
    spec: JobSpec, sink: Sink, *, ray_address: str | None = None, overwrite: bool = False, stop: Stop | None = None
) -> dict[str, Any]:
    """Run a job, or continue it, and return its manifest. Raises QTuneError, and SystemExit where `stop` was asked."""
    spec = portable(spec)
    output = Output(spec.output.path)
    with output.locked(sink.say):
        if overwrite:
            clear(output)
        output.check_owner(spec)  # before anything is written there, progress included
        file = FileSink(output.note_progress)
        try:
            return _Job(spec, output, Tracker(sink, file), ray_address, stop or Stop()).run()
        except QTuneError as error:
            file.fail(error.code, error.message, error.hint)
            raise
        finally:
            file.close()


@dataclass(slots=True)
class _Job:
    spec: JobSpec
    output: Output
    tracker: Tracker
    ray_address: str | None
    stop: Stop
    _nodes: Cluster | None = None

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
            selection = self._find_thresholds(scored, self.spec.prune, rule)
            markers = self._prune(scored, selection)
            return finish_pruned(self.spec, self.output, scored, Pruned(selection, markers), self.tracker)
        finally:
            ray_cluster.disconnect()
            self.tracker.close()

    def _adopt(self) -> Scored:
        """Take over the scores of an earlier output."""
        self.output.claim(self.spec, "")
        return adopt_scores(self.spec, self.output)

    def _connect(self) -> Cluster:
        """Join or start the cluster, once."""
        if self._nodes is None:
            self._nodes = ray_cluster.connect(self.ray_address)
            self.stop.install_again()
            ray_cluster.watch_head(self.stop.fail)
        return self._nodes

    # --- score

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
        plan = plan_shards(self.spec, self.output, nodes, self.tracker)
        markers = self.output.finished("scored")
        pool = ray_cluster.size_pool(self.spec.engine, nodes)
        resumed = sum(m["read"] for m in markers.values())
        if markers:
            self.tracker.say(f"continuing: {len(markers)} of {len(plan.shards)} shards are already scored")
        self.tracker.stage(
            "score", plan.num_records, unit="samples", resumed=resumed, actors=pool.max_actors or pool.min_actors
        )
        guard = Guard(start_supervisor(), self.spec.limits.max_shard_attempts)
        context = replace(
            context,
            threads=pool.threads,
            guard=guard,
            partials=self.output.partials(),
            plan_digest=plan.digest,
        )
        scoring = Scoring(self.spec, context, guard, pool, nodes, self.tracker, self.stop)
        fresh = scoring.run([index for index in range(len(plan.shards)) if index not in markers])
        category = self.spec.input.category_field
        return summarise(
            {**markers, **fresh, **scoring.reject_failed()},
            template=encoder.template_description,
            own_columns={name: own for own, name in own_names(plan).items()},
            renamed=pruned_names(plan),
            category_column=own_names(plan)[category] if category else None,
            performance=measure(list(fresh.values())),
        )

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

    def _find_thresholds(self, scored: Scored, prune: PruneSpec, rule: QuadrantRule | None) -> SelectionResult:
        """Thresholds of all samples, and each one's label."""
        self.tracker.stage("thresholds", scored.num_samples, unit="samples")

        def workers(items: Sequence[tuple[int, bytes]], context: SelectionContext) -> Iterator[tuple[int, bytes]]:
            max_tasks = self._connect().max_tasks(len(items), shards_per_task=1)
            for arrival in stream(items, Stage("thresholds", work, (context,), max_tasks=max_tasks)):
                yield arrival.shard, arrival.payload

        return find_thresholds(
            Population.of(ScoreShards(self.output.root), scored.shards),
            prune,
            rule=rule,
            workers=workers,
            folder=self.output.at("_qtune", "ranks"),
            advance=self.tracker.advance,
        )

    def _prune(self, scored: Scored, selection: SelectionResult) -> dict[int, dict[str, Any]]:
        """Prune the shards that are not finished; returns the markers of all."""
        markers = self.output.finished("pruned")
        self.tracker.stage("prune", len(scored.shards), resumed=len(markers))

        def items() -> Any:
            for shard, (group, span) in selection.shards().items():
                if shard not in markers:
                    yield shard, pickle.dumps(selection.of_shard(group, span))

        arguments = (self.spec, scored.renamed, scored.category_column)
        stage = Stage("prune", prune_shard, arguments, num_cpus=LIGHT_CPUS)
        if self._is_small(scored):
            arrivals = run_here(items(), stage)
        else:
            max_tasks = self._connect().max_tasks(len(scored.shards) - len(markers))
            arrivals = stream(items(), replace(stage, max_tasks=max_tasks))
        for arrival in arrivals:
            markers[arrival.shard] = json.loads(arrival.payload)
            self.tracker.advance(1)
        return {index: markers[index] for index in sorted(markers)}

    def _is_small(self, scored: Scored) -> bool:
        """Whether pruning takes less time than a cluster to start, and none was."""
        return self._nodes is None and self.ray_address is None and scored.tokens <= SMALL_TOKENS
