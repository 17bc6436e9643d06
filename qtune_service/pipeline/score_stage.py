"""Score the shards of a job: send them through encode, score and commit, handle failures, and sum their markers.

The sum (`Scored`) is stored in the manifest, so that its scores can be pruned again without the markers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from qtune_service.errors import EngineError, OutputConflictError
from qtune_service.importing import import_transformers_without_torch
from qtune_service.ingest.planner import Plan
from qtune_service.output.layout import part_files, paths_by_shard, rows_by_shard
from qtune_service.pipeline.executor import Executor, Pool, Stage
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.retries import StoppedError
from qtune_service.pipeline.score_shard import CALLS_IN_FLIGHT, STAGE, ScoreShard
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import (
    Counts,
    JobContext,
    ScoredMarker,
    commit_shard,
    encode_shard,
    reject_shard,
)
from qtune_service.pipeline.stall_watch import ScoringLook, watching
from qtune_service.scoring.engine_class import class_of_shards
from qtune_service.scoring.process_environment import allocator_environment

MAX_NOTES = 50
"""Most notes that the manifest contains: some name keys of records."""
COMMIT_CPUS = 0.1
"""CPUs that Ray reserves for writing a shard. Ray Data reserves those of encoding as long as a shard may be handed out
again, and on a small cluster little is left beside the actors."""
FAILURES_IN_A_ROW = 3
"""The job ends early if more shards than this fail in succession."""


# --- the result


@dataclass(frozen=True, slots=True)
class Scored:
    """The sum of a job's scored shards."""

    shards: dict[int, int]
    """Shard index -> scored rows. Shards without rows have no file and are left out."""
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
    """EngineInfo of the actors. Empty where nothing was scored."""
    template: str
    """Description of the chat template that rendered the conversations."""
    own_columns: dict[str, str] = field(default_factory=dict)
    """Own columns of the records: name in scores/ -> name in the records."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Name in scores/ -> name in pruned/, where these differ."""
    category_column: str | None = None
    """Column of scores/ that holds the category."""
    revisions: dict[str, str] = field(default_factory=dict)
    """Dataset of the hub -> commit that was read."""
    notes: Counts = field(default_factory=dict)
    """What usable records say and their samples do not contain (Conversation.notes): clause -> records."""
    notices: tuple[str, ...] = ()
    """Sentences about the files that were read, of the plan."""
    stop_warning: str = ""
    """A warning if no trained text ends in a stop token of the model."""
    stop_token_ids: tuple[int, ...] = ()
    """The tokens that end turns, which `keep_end_of_turn` protects. Empty for scores of earlier versions."""
    performance: dict[str, float] = field(default_factory=dict)
    """Figures of `measure`. Empty where nothing was left to score."""
    actor_problems: tuple[str, ...] = ()
    """Actors of this run that failed to start or were retired, a sentence each."""
    files: tuple[dict[str, Any], ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the notices, the notes and the stop warning as sentences."""
        notes = [f"{count:,} of {self.read:,} records: {note}." for note, count in self.notes.items()]
        return tuple(filter(None, [*self.notices, self.stop_warning, *notes]))

    @property
    def num_samples(self) -> int:
        """Return the number of scored samples."""
        return self.read - self.rejected

    def paths(self, folder: str) -> dict[int, str]:
        """Return the path of each shard's file in a folder."""
        return paths_by_shard(part_files({"files": list(self.files)}, folder))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest, without the files, which the manifest lists itself."""
        body = asdict(self)
        del body["files"], body["performance"], body["actor_problems"]
        return {**body, "shards": {str(index): rows for index, rows in self.shards.items()}}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Scored:
        """Return the sum that `to_dict` wrote."""
        body = dict(manifest["scoring"])
        shards = {int(index): rows for index, rows in body.pop("shards").items()}
        files = tuple(file.to_dict() for file in part_files(manifest, "scores", "rejected"))
        notices = tuple(body.pop("notices", ()))
        stops = tuple(body.pop("stop_token_ids", ()))
        return cls(shards=shards, files=files, notices=notices, stop_token_ids=stops, **body)


def summarise(
    markers: Mapping[int, ScoredMarker],
    *,
    template: str,
    stop_warning: str,
    stop_token_ids: tuple[int, ...],
    notices: tuple[str, ...],
    own_columns: dict[str, str],
    renamed: dict[str, str],
    category_column: str | None,
    revisions: dict[str, str],
    performance: dict[str, float],
    actor_problems: tuple[str, ...] = (),
) -> Scored:
    """Add up the markers of all shards. Raise EngineMismatchError where two engines scored one output."""
    ordered = [markers[index] for index in sorted(markers)]
    engines = [m.engine for m in ordered if m.engine]
    class_of_shards(engines)
    return Scored(
        shards={index: markers[index].scored for index in sorted(markers) if markers[index].scored},
        read=sum(m.read for m in ordered),
        rejected=sum(m.rejected for m in ordered),
        reasons=add_counts(m.reasons for m in ordered),
        rejected_by_source=add_tables(m.rejected_by_source for m in ordered),
        rejected_by_category=add_tables(m.rejected_by_category for m in ordered),
        truncated=sum(m.truncated for m in ordered),
        tokens=sum(m.tokens for m in ordered),
        trained_tokens=sum(m.trained_tokens for m in ordered),
        engine=next(iter(engines), {}),
        template=template,
        stop_warning=stop_warning,
        stop_token_ids=stop_token_ids,
        notices=notices,
        own_columns=own_columns,
        renamed=renamed,
        category_column=category_column,
        revisions=revisions,
        notes=dict(Counter(add_counts(m.notes for m in ordered)).most_common(MAX_NOTES)),
        performance=performance,
        actor_problems=actor_problems,
        files=tuple(f for m in ordered for f in m.files),
    )


SHOWN_SHARDS = 3


def check_rows(plan: Plan, markers: Mapping[int, ScoredMarker]) -> None:
    """Raise OutputConflictError unless the shards hold the records that were planned, each of them and in sum."""
    wrong = [
        f"shard {shard.index} ({plan.files[shard.file_index].name} from {shard.first_line}) has {_read(marker)}, "
        f"and {shard.num_records:,} were planned"
        for shard in plan.shards
        if (marker := markers.get(shard.index)) is None or marker.read != shard.num_records
    ]
    if wrong:
        raise _wrong_rows(wrong, "scored")
    read = sum(marker.read for marker in markers.values())
    if read != plan.num_records or len(markers) != len(plan.shards):
        raise _wrong_rows(
            [f"{len(markers):,} shards have {read:,} records, and {plan.num_records:,} were planned"], "scored"
        )


def _read(marker: ScoredMarker | None) -> str:
    return "no marker" if marker is None else f"{marker.read:,} records"


def check_part_rows(folder: str, files: Iterable[Mapping[str, Any]], expected: Mapping[int, int]) -> None:
    """Raise OutputConflictError unless the files of a folder have the expected rows of each shard that has any."""
    found = rows_by_shard(part_files({"files": [dict(file) for file in files]}, folder))
    wrong = [
        f"{folder}/ of shard {shard} has {found.get(shard, 0):,} rows instead of {expected.get(shard, 0):,}"
        for shard in sorted({*found, *expected})
        if found.get(shard, 0) != expected.get(shard, 0)
    ]
    if wrong:
        raise _wrong_rows(wrong, "pruned" if folder in ("quadrants", "pruned") else "scored")


def _wrong_rows(wrong: Sequence[str], stage: str) -> OutputConflictError:
    more = f"; and {len(wrong) - SHOWN_SHARDS:,} more" if len(wrong) > SHOWN_SHARDS else ""
    return OutputConflictError(
        f"records are missing or repeated, so the output is not completed: {'; '.join(wrong[:SHOWN_SHARDS])}{more}",
        f"Remove the markers of these shards below _qtune/{stage}/ and run the same command again, or start from "
        "scratch with --overwrite.",
    )


def measure(
    markers: Mapping[int, ScoredMarker], arrived_s: Mapping[int, float], *, actors_failed: int = 0
) -> dict[str, float]:
    """Return the speed of this run, from the shards that it scored.

    arrived_s: shard -> time.monotonic() of its arrival at this process. Clocks of other nodes may differ by seconds, so
    only durations are taken from them: a shard began `engine_s` before it arrived.

    startup_s: from the start of this process to the first engine's first shard. score_s: from there until the last
    shard arrived. engine_busy_share: share of the actors' time, each from its first shard on, spent scoring. tail_s:
    how long the first actor to run out of shards waited for the last one. encode_s: seconds of all encoding tasks.
    actors_failed: actors that failed to start or were retired.
    """
    scored = {shard: marker for shard, marker in markers.items() if marker.engine}
    if not scored:
        return {}
    first_s: dict[str, float] = {}  # by actor: when its first shard began, and when its last one arrived
    last_s: dict[str, float] = {}
    for shard, m in scored.items():
        at_s = arrived_s[shard]
        first_s[m.actor] = min(at_s - m.engine_s, first_s.get(m.actor, at_s))
        last_s[m.actor] = max(at_s, last_s.get(m.actor, at_s))
    began_s, ended_s = min(first_s.values()), max(last_s.values())
    score_s, tokens = ended_s - began_s, sum(m.tokens for m in scored.values())
    engine_s = sum(m.engine_s for m in scored.values())
    running_s = time.time() - psutil.Process().create_time()
    return {
        "startup_s": round(running_s - (time.monotonic() - began_s), 3),
        "score_s": round(score_s, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / score_s, 1),
        "engine_busy_share": round(engine_s / sum(ended_s - s for s in first_s.values()), 4),
        "tail_s": round(max(last_s.values()) - min(last_s.values()), 3),
        "encode_s": round(sum(m.encode_s for m in scored.values()), 3),
        "actors": len(first_s),
        "nodes": len({actor.partition(":")[0] for actor in first_s}),
        "actors_failed": actors_failed,
    }


def add_counts(counts: Iterable[Mapping[str, int]]) -> Counts:
    """Return the sums of counts by name."""
    total: Counter[str] = Counter()
    for c in counts:
        total.update(c)
    return dict(total)


def add_tables(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, Counts]:
    """Return the sums of counts by name within each name."""
    total: dict[str, Counter[str]] = {}
    for table in tables:
        for name, counts in table.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in total.items()}


# --- the run


@dataclass(slots=True)
class ScoringRun:
    """One run over the shards that are not scored yet. `context` has the run's retry policy."""

    context: JobContext
    executor: Executor
    pool: Pool
    tracker: Tracker
    stop: Stop
    _markers: dict[int, ScoredMarker] = field(default_factory=dict)
    _arrived_s: dict[int, float] = field(default_factory=dict)
    """Scored shard -> time.monotonic() of its arrival."""
    _failed: dict[int, str] = field(default_factory=dict)
    """Failed shard -> its problem."""
    _problems: tuple[str, ...] = ()

    def run(self, todo: Sequence[int]) -> dict[int, ScoredMarker]:
        """Score shards and return the markers of those that were scored.

        Raise EngineError if more shards fail than `limits` allows: at the end, or early where every shard fails.
        """
        retries, limits = self.context.retries, self.context.spec.limits
        assert retries is not None
        arrived: set[int] = set()
        failed_in_a_row, is_stopped = 0, False
        items = [(index, None) for index in todo]
        look = ScoringLook(self.executor, retries.supervisor, self.pool, len(todo), limits.stall_s, self.tracker.say)
        with self.stop.saving(retries.stop, arrived, limits.stop_grace_s), watching(self.tracker, look):
            results = self.executor.run(items, *self._stages(), retries=retries, on_problems=self._report_problems)
            for result in results:
                arrived.add(result.shard)
                if isinstance(result.problem, StoppedError):
                    is_stopped = True
                elif result.problem is not None:
                    failed_in_a_row += 1
                    self._add_failed(result.shard, result.problem.message, failed_in_a_row)
                else:
                    failed_in_a_row = 0
                    self._add_scored(result.shard, result.value)
            if is_stopped:
                self.stop.wait_for_exit()
        if len(self._failed) > limits.max_failed_shards:
            raise self._too_many(f"{len(self._failed)} of {len(todo)} shards")
        return self._markers

    def performance(self) -> dict[str, float]:
        """Return the speed of this run; see `measure`."""
        return measure(self._markers, self._arrived_s, actors_failed=len(self._problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """Return the actors that failed to start or were retired, a sentence each."""
        return self._problems

    def _report_problems(self, problems: tuple[str, ...]) -> None:
        self._problems = problems
        self.tracker.report_problems(problems)

    def reject_failed(self) -> dict[int, ScoredMarker]:
        """Reject the records of failed shards and return their markers."""
        results = self.executor.run(self._failed.items(), Stage("reject", reject_shard, (self.context,)))
        return {result.shard: result.value for result in results}

    def _stages(self) -> Iterable[Stage]:
        arguments = (self.context,)
        # A tokenizer with code of its own may need torch.
        setup = None if self.context.spec.model.trust_remote_code else import_transformers_without_torch
        environment = {} if self.pool.gpus or self.pool.bundles else allocator_environment()
        return (
            Stage("encode", encode_shard, arguments, setup=setup),
            Stage(
                STAGE,
                ScoreShard,
                arguments,
                pool=self.pool,
                environment=environment,
                calls_in_flight=CALLS_IN_FLIGHT,
            ),
            Stage("commit", commit_shard, arguments, num_cpus=COMMIT_CPUS, is_closing=True),
        )

    def _add_scored(self, shard: int, marker: ScoredMarker) -> None:
        if not self._markers:
            self.tracker.say(f"engine: {marker.engine['name']} ({marker.engine['reason']})")
        self._markers[shard], self._arrived_s[shard] = marker, time.monotonic()
        self.tracker.advance(marker.read, tokens=marker.tokens, rejected=marker.rejected)

    def _add_failed(self, shard: int, problem: str, failed_in_a_row: int) -> None:
        """Report a failed shard. Raise EngineError after too many failures in a row and over the limit in all."""
        self._failed[shard] = problem
        self.tracker.say(f"failed: {problem}")
        if len(self._failed) > self.context.spec.limits.max_failed_shards and failed_in_a_row > FAILURES_IN_A_ROW:
            raise self._too_many(f"{failed_in_a_row} shards in a row")

    def _too_many(self, what: str) -> EngineError:
        failed = self._failed
        return EngineError(
            f"{what} failed, each {self.context.spec.limits.max_shard_attempts} times or permanently: "
            + "; ".join(failed[shard] for shard in sorted(failed)[:3]),
            "All other shards are scored and safe. Run the same command again to retry these, or pass "
            f"--max-failed-shards {len(failed)} to skip them and reject their records.",
        )
