"""Run a whole job: plan, score, find thresholds, prune, and write the results.

Finished work is kept: planning is done once, a scored or pruned shard is never computed again, and the manifest,
written last, makes the output complete. The same call on the same output continues.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from qtune_service.config import JobSpec, PruneSpec
from qtune_service.errors import DataError, OutputConflictError, QTuneError
from qtune_service.ingest.records import HINTS
from qtune_service.job_fields import in_terminal
from qtune_service.output.layout import JOB_VARIABLE, Output
from qtune_service.output.removal import clear
from qtune_service.pipeline.distributed_selection import work
from qtune_service.pipeline.executor import Executor, Stage
from qtune_service.pipeline.manifest import Pruned, finish_pruned, finish_scored
from qtune_service.pipeline.population import Population, ScoreShards
from qtune_service.pipeline.prepare import (
    JobInput,
    adopt_scores,
    find_input,
    load_rule,
    mean_tokens,
    plan_shards,
    portable,
    save_tokenizer,
)
from qtune_service.pipeline.progress import FileSink, Sink, Tracker
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.score_stage import Scored, ScoringRun, check_part_rows, check_rows, summarise
from qtune_service.pipeline.selection_stage import SelectionResult, find_thresholds
from qtune_service.pipeline.selection_tasks import SelectionContext
from qtune_service.pipeline.shard_tables import own_names, pruned_names
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import JobContext, PrunedMarker, ScoredMarker, prepare, prune_shard
from qtune_service.pipeline.stall_watch import steps_look, watching
from qtune_service.scoring.engine_class import class_of_shards
from qtune_service.scoring.model_config import ModelInfo, describe_model, local_folder
from qtune_service.scoring.vllm.arguments import check_names, run_arguments
from qtune_service.selection.plane import QuadrantRule
from qtune_service.tokenize.encoded_batch import NO_ENDINGS, Endings
from qtune_service.tokenize.encoder import Encoder

SMALL_TOKENS = 1 << 23
"""Jobs with at most this many tokens are pruned without a cluster. It takes seconds on one core."""


def run_job(
    spec: JobSpec, sink: Sink, *, executor: Executor | None = None, overwrite: bool = False, stop: Stop | None = None
) -> dict[str, Any]:
    """Run a job, or continue it, and return its manifest.

    executor: runs the stages, by default a RayExecutor. stop: its signal handler stops the job, which then raises
    SystemExit. Raise QTuneError where the job fails.
    """
    spec = portable(spec)
    output = Output(spec.output.path)
    with output.locked(sink.say):
        if overwrite:
            clear(output)
        output.check_owner(spec)  # before anything is written there, progress included
        file, stop = FileSink(output.note_progress, attempt=os.environ.get(JOB_VARIABLE, "")), stop or Stop()
        try:
            with stop.restored():
                return _Job(spec, output, Tracker(sink, file), executor or RayExecutor(), stop).run()
        except QTuneError as error:
            file.fail(error.code, error.message, error.hint)
            raise
        finally:
            file.close()


@dataclass(frozen=True, slots=True)
class _Job:
    spec: JobSpec
    output: Output
    tracker: Tracker
    executor: Executor
    stop: Stop

    def run(self) -> dict[str, Any]:
        """Run all stages, or those that are left."""
        rule = load_rule(self.spec.prune.quadrant_rule) if self.spec.prune else None
        self.tracker.stage("prepare", 1, unit="steps")
        if (manifest := self.output.manifest) is not None:
            self._claim(None if self.spec.from_scores else describe_model(self.spec.model))
            self.tracker.say(f"{self.output.root} is already complete; nothing to do.")
            return manifest
        try:
            scored = self._adopt() if self.spec.from_scores else self._score()
            self._check_rejected(scored)
            check_part_rows("scores", scored.files, scored.shards)
            if self.spec.prune is None:
                return finish_scored(self.spec, self.output, scored, self.tracker)
            selection = self._find_thresholds(scored, self.spec.prune, rule)
            markers = self._prune(scored, selection)
            return finish_pruned(self.spec, self.output, scored, Pruned(selection, markers), self.tracker)
        finally:
            self.executor.close()
            self.tracker.close()

    # --- score

    def _adopt(self) -> Scored:
        """Take over the scores of an earlier output."""
        self.output.claim(self.spec, "")
        return adopt_scores(self.spec, self.output)

    def _claim(self, model: ModelInfo | None) -> None:
        """Claim the output for this spec and model."""
        fingerprints = (model.fingerprint, model.earlier_fingerprint) if model else ("", "")
        self.output.claim(self.spec, *fingerprints)

    def _start(self) -> tuple[JobContext, Encoder, JobInput]:
        """Start workers and tokenizer, which take seconds, at the same time. Find missing data or models first."""
        given = find_input(self.spec, self.output)
        check_names(self.spec.engine)
        local_folder(self.spec.model.name)
        look = steps_look(self.executor, 0, lambda: ("steps", "starting workers and reading the model's configuration"))
        with ThreadPoolExecutor(1) as thread, watching(self.tracker, look):
            preparing = thread.submit(prepare, self.spec)
            self.executor.start(self.stop)
            context, encoder = preparing.result()
            return context, encoder, given

    def _score(self) -> Scored:
        """Score the shards that are not finished."""
        context, encoder, given = self._start()
        self._claim(context.model)
        save_tokenizer(encoder, self.output)
        if given.is_planned_by_workers:
            self.executor.reserve(self.spec.engine)
        plan, notices = plan_shards(self.spec, given, self.output, self.executor, self.tracker)
        markers = {shard: ScoredMarker.from_dict(body) for shard, body in self.output.finished("scored").items()}
        pool, limits = self.executor.size_pool(self.spec.engine), self.spec.limits
        resumed = sum(marker.read for marker in markers.values())
        if markers:
            self.tracker.say(f"continuing: {len(markers)} of {len(plan.shards)} shards are already scored")
        todo = [index for index in range(len(plan.shards)) if index not in markers]
        wanted = min(pool.max_actors or pool.min_actors, len(todo))
        self.tracker.stage("score", plan.num_records, unit="samples", resumed=resumed, actors_wanted=wanted)
        retries = self.executor.retry_policy(limits.max_shard_attempts, limits.max_failed_actors)
        scored_by = class_of_shards(marker.engine for marker in markers.values())
        retries.supervisor.call("expect_engine", scored_by, 1 if pool.max_actors == 1 else max(2, pool.min_actors))
        context = replace(
            context,
            threads=pool.threads,
            retries=retries,
            partials=self.output.partials(),
            plan_digest=plan.digest,
            process_name=self.executor.process_name,
            tokenizer=encoder.fingerprint,
            engine_arguments={
                **run_arguments(self.spec.engine, mean_tokens(plan), context.model.max_model_len),
                **pool.engine_arguments,
            },
        )
        scoring = ScoringRun(context, self.executor, pool, self.tracker, self.stop)
        fresh = scoring.run(todo)
        category = self.spec.input.category_field
        finished = {**markers, **fresh, **scoring.reject_failed()}
        check_rows(plan, finished)
        endings = sum((Endings.from_dict(marker.endings) for marker in finished.values()), NO_ENDINGS)
        return summarise(
            finished,
            template=encoder.template_description,
            stop_warning=encoder.stop_warning(endings) or "",
            stop_token_ids=encoder.end_of_turn_ids,
            notices=notices,
            own_columns={name: own for own, name in own_names(plan).items()},
            renamed=pruned_names(plan),
            category_column=own_names(plan)[category] if category else None,
            revisions=plan.revisions,
            performance=scoring.performance(),
            actor_problems=scoring.problems,
        )

    def _check_rejected(self, scored: Scored) -> None:
        """Raise DataError where too few records could be scored."""
        ratio = scored.rejected / scored.read
        reasons = sorted(scored.reasons.items(), key=lambda item: -item[1])
        worst = ", ".join(f"{reason} {count:,}" for reason, count in reasons[:3])
        where = f"Their lines and reasons are in {self.output.at('rejected')}."
        if len(reasons) == 1 and scored.num_samples == 0:
            raise self._one_reason(scored, where)
        if scored.num_samples == 0:
            raise DataError(f"none of {scored.read:,} records could be scored: {worst}", where)
        if ratio > self.spec.limits.max_rejected_ratio:
            raise DataError(
                f"{scored.rejected:,} of {scored.read:,} records ({ratio:.1%}) were rejected: {worst}",
                f"{where} To continue anyway, run again with --max-rejected-ratio above {ratio:.3f}.",
            )

    def _one_reason(self, scored: Scored, where: str) -> DataError:
        """Return the error of a job that rejected every record for one reason, with the first record's detail."""
        path = next(iter(scored.paths("rejected").values()))
        first = self.output.read_part(path, ["source", "line", "reason", "detail"]).slice(0, 1).to_pylist()[0]
        what = f"none of {scored.read:,} records could be scored, all for one reason ({first['reason']})"
        hint = in_terminal(HINTS.get(first["reason"], ""))
        return DataError(
            f"{what}. {first['source']}:{first['line']}: {in_terminal(first['detail'])}", f"{hint} {where}".strip()
        )

    # --- thresholds and prune

    def _find_thresholds(self, scored: Scored, prune: PruneSpec, rule: QuadrantRule | None) -> SelectionResult:
        """Find the thresholds over all samples, and each sample's label."""
        self.tracker.stage("thresholds", scored.num_samples, unit="samples")

        def workers(items: Sequence[tuple[int, bytes]], context: SelectionContext) -> Iterator[tuple[int, bytes]]:
            self.executor.start(self.stop)
            stage = Stage("thresholds", work, (context,), num_cpus=1, shards_per_task=1, on_cpu_nodes=True)
            return ((result.shard, result.value) for result in self.executor.run(items, stage))

        look = steps_look(self.executor, 1, lambda: ("steps", "reading scores and selecting"))
        with watching(self.tracker, look):
            return find_thresholds(
                Population.of(
                    ScoreShards(self.output.root, scored.stop_token_ids), scored.shards, scored.paths("scores")
                ),
                prune,
                rule=rule,
                workers=workers,
                folder=self.output.at("_qtune", "ranks"),
                advance=self.tracker.advance,
            )

    def _prune(self, scored: Scored, selection: SelectionResult) -> dict[int, PrunedMarker]:
        """Prune the shards that are not finished, and return the markers of all."""
        finished = self.output.finished("pruned")
        if any("lost_end_of_turn" not in body for body in finished.values()):
            raise OutputConflictError(
                f"an earlier version, without keep_end_of_turn, pruned shards of {self.output.root}",
                f"Remove {self.output.at('_qtune', 'pruned')} and run the same command again. Scores stay.",
            )
        markers = {shard: PrunedMarker.from_dict(body) for shard, body in finished.items()}
        self.tracker.stage("prune", len(scored.shards), resumed=len(markers))
        executor = self.executor.for_small_work() if scored.tokens <= SMALL_TOKENS else self.executor
        todo = [(shard, where) for shard, where in selection.shards().items() if shard not in markers]
        if todo:
            executor.start(self.stop)
        items = ((shard, selection.of_shard(shard, group, span)) for shard, (group, span) in todo)
        settings = (self.spec, scored.renamed, scored.category_column, scored.stop_token_ids)
        stage = Stage("prune", prune_shard, settings, on_cpu_nodes=True)
        look = steps_look(executor, stage.num_cpus, lambda: ("steps", "no shard has been pruned"))
        with watching(self.tracker, look):
            for result in executor.run(items, stage):
                markers[result.shard] = result.value
                self.tracker.advance(1)
        files = [file for marker in markers.values() for file in marker.files]
        check_part_rows("quadrants", files, scored.shards)
        check_part_rows("pruned", files, {shard: marker.kept for shard, marker in markers.items() if marker.kept})
        return {index: markers[index] for index in sorted(markers)}
