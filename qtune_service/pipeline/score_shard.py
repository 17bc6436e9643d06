"""The scoring stage: an actor with one loaded model that holds at most two shards, of which one has the engine.

A call prepares its shard (reads partial scores, sorts, makes requests), waits for its turn, scores, and packs the
result. Only scoring needs the engine, so the next shard is ready when one ends, and results are packed beside it. Two
shards never share a batch, because scores depend on the shard alone.

The supervisor (retries.py) counts an attempt at a shard only where the shard had the engine. If the process dies while
a shard is prepared or packed, the shard with the engine is held responsible. The other one is suspect: its next
preparation has the actor to itself and is counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError
from qtune_service.pipeline.retries import PassedOnError, StoppedError
from qtune_service.pipeline.shard_tables import (
    own_names,
    partial_bytes,
    partial_scores,
    problems_of,
    rejected_samples,
    samples_of,
    with_scores,
    without_rows,
)
from qtune_service.pipeline.stages import EncodedShard, JobContext, ScoredShard, plan_of
from qtune_service.samples import TokenScores
from qtune_service.scoring.scorer import (
    EngineInfo,
    FlatScores,
    InterruptedScoring,
    Outcomes,
    Scorer,
    ScoringCall,
    Watch,
    never,
)
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import collector_paused

STAGE = "score"
CALLS_IN_FLIGHT = 2
"""Shards that an actor holds: one with the engine, and one that is prepared or packed."""


class ScoreShard:
    """A scoring actor: one loaded model, and one thread that alone runs it.

    Ray Data makes an actor in one thread and calls it in others. OpenMP keeps a team of threads for each that runs
    torch, so the engine is made and called in a thread of its own.
    """

    def __init__(self, context: JobContext) -> None:
        os.environ["OMP_NUM_THREADS"] = str(context.threads)
        self._context = context
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._actor = context.process_name()
        self._describe("fetching or checking the model's files")
        model, engine = context.engine()
        self._describe("")
        self._scorer: Scorer = self._engine.submit(self._build, model, engine).result()
        info = self._engine.submit(lambda: self._scorer.info).result()
        self._engine_name = f"{info.name} {info.version} {info.dtype}"
        self._turn, self._admission = threading.Lock(), Admission()

    def _build(self, model: ModelSpec, engine: EngineSpec) -> Scorer:
        """Load the model. Raise EngineMismatchError where the job's other scores are of another engine."""
        from qtune_service.scoring import choose_engine
        from qtune_service.scoring.engine_class import EngineClass, build_agreed

        if (retries := self._context.retries) is None:
            return choose_engine.build_scorer(model, engine)

        def propose(engine: EngineClass | None, *, is_fallback: bool = False) -> EngineClass | None:
            agreed: EngineClass | None = retries.supervisor.call(
                "propose_engine", self._actor, engine, is_fallback=is_fallback
            )
            return agreed

        return build_agreed(model, engine, propose, self._actor)

    def __call__(self, index: int, encoded: EncodedShard) -> ScoredShard | None:
        """Score a shard and reject the samples that cannot be scored. Return None where it is committed already.

        Ray repeats a task whose result was lost with its worker, so a committed shard may come again.
        """
        if self._context.output.marker("scored", index) is not None:
            return None
        is_suspect = bool(self._tell("is_suspect", index))
        with self._admission.admit(alone=is_suspect):
            shard = None if is_suspect else self._prepare(index, encoded)
            with self._engine_for(index):
                started_at_s, started = time.time(), time.perf_counter()
                shard = shard or self._prepare(index, encoded)
                info = self._run(index, shard)
                engine_s = time.perf_counter() - started
            return self._pack(encoded, shard, info, started_at_s, engine_s)

    def _prepare(self, index: int, encoded: EncodedShard) -> _Shard:
        """Prepare the call for the samples that an earlier, stopped run or actor did not score."""
        retries = self._context.retries
        done: dict[int, TokenScores] = {}
        if index in self._context.partials or (retries is not None and retries.supervisor.call("has_partial", index)):
            done = partial_scores(self._context.output.read_partial(index), self._engine_name)
        with collector_paused():
            samples = samples_of(encoded.rows)
            left = [i for i in range(len(samples)) if i not in done]
            call = ScoringCall.prepare(self._scorer, [samples[i] for i in left])
        return _Shard(call, left, done, len(samples))

    def _run(self, index: int, shard: _Shard) -> EngineInfo:
        """Score a prepared shard. Raise StoppedError after saving the new scores."""
        retries = self._context.retries
        watch = retries.supervisor.reporter(index) if retries else never
        try:
            return self._engine.submit(_score, self._scorer, shard.call, watch).result()
        except InterruptedScoring as stop:
            kept = shard.done | {shard.left[k]: scores for k, scores in stop.scores.items()}
            file_io.write_bytes(self._context.output.partial_uri(index), partial_bytes(kept, self._engine_name))
            raise StoppedError(
                f"shard {index} was stopped with {len(kept)} of {shard.num_samples} samples scored"
            ) from None

    def _pack(
        self, encoded: EncodedShard, shard: _Shard, info: EngineInfo, started_at_s: float, engine_s: float
    ) -> ScoredShard:
        outcomes = shard.outcomes()
        problems = problems_of(outcomes)
        rows = encoded.rows
        if problems:
            rows = rows.filter(pa.array([i not in problems for i in range(shard.num_samples)], pa.bool_()))
        category = own_names(plan_of(self._context)).get(self._context.spec.input.category_field or "")
        return ScoredShard(
            rows=with_scores(rows, without_rows(outcomes.scores, problems)),
            rejected=pa.concat_tables([encoded.rejected, rejected_samples(encoded.rows, problems, category)]),
            engine=asdict(info),
            actor=self._actor,
            started_at_s=started_at_s,
            engine_s=engine_s,
            encode_s=encoded.encode_s,
            notes=encoded.notes,
            endings=encoded.endings,
        )

    @contextmanager
    def _engine_for(self, index: int) -> Iterator[None]:
        """Wait for the engine, and hold it for a shard. Raise StoppedError or PassedOnError where it must not."""
        self._turn.acquire()
        is_broken = False
        try:
            entry = self._tell("enter", index, self._actor)
            if entry == "stop":
                raise StoppedError("the job is stopping")
            if entry == "skip":
                raise PassedOnError(f"shard {index} is scored by another actor")
            try:
                yield
            except EngineError as error:
                retries = self._context.retries
                is_broken = retries is not None and retries.replaces_workers and not isinstance(error, StoppedError)
                raise
            finally:
                if self._context.retries is not None and not is_broken:
                    self._context.retries.supervisor.send("leave", STAGE, index)
        finally:
            if not is_broken:  # else this process ends, and no other shard may begin before
                self._turn.release()

    def _describe(self, detail: str) -> None:
        """Report what this actor does before its engine runs. Empty: it loads the model."""
        if (retries := self._context.retries) is not None:
            retries.supervisor.send("describe_actor", self._actor, detail)

    def _tell(self, method: str, index: int, *arguments: Any) -> Any:
        """Call the supervisor, if there is one."""
        retries = self._context.retries
        return retries.supervisor.call(method, STAGE, index, *arguments) if retries else None


@dataclass(slots=True)
class _Shard:
    """A prepared shard."""

    call: ScoringCall
    left: list[int]
    """Samples of the call: their index in the shard."""
    done: dict[int, TokenScores]
    """Scores of an earlier run."""
    num_samples: int

    def outcomes(self) -> Outcomes:
        """Return the outcomes of all samples."""
        fresh = self.call.finish()
        if not self.done:
            return fresh
        rows = fresh.scores.rows()
        scores = self.done | {i: rows[k] for k, i in enumerate(self.left)}
        problems = {self.left[k]: reason for k, reason in fresh.problems.items()}
        return Outcomes(FlatScores.of([scores[i] for i in range(self.num_samples)]), problems)


def _score(scorer: Scorer, call: ScoringCall, watch: Watch) -> EngineInfo:
    """Run a call, in the engine's thread. The engine's information may name the head only after a call."""
    call.run(watch)
    return scorer.info


@dataclass(slots=True)
class Admission:
    """Calls in progress in an actor: any number, or a single one alone."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _calls: int = 0
    _is_alone: bool = False

    @contextmanager
    def admit(self, *, alone: bool) -> Iterator[None]:
        """Wait until a call may begin, and count it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_alone and not (alone and self._calls))
            self._calls, self._is_alone = self._calls + 1, alone
        try:
            yield
        finally:
            with self._changed:
                self._calls, self._is_alone = self._calls - 1, False
                self._changed.notify_all()
