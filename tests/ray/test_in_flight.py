"""A scoring actor holds two shards: one with the engine, and one that is prepared or packed beside it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import ShardFailedError
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.planner import make_plan, scan, split
from qtune_service.output.columns import list_column
from qtune_service.output.layout import Output
from qtune_service.pipeline.executor import Pool, Stage, StageResult
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.retries import StoppedError
from qtune_service.pipeline.score_shard import CALLS_IN_FLIGHT, STAGE, ScoreShard
from qtune_service.pipeline.shard_tables import ENCODED_FIELDS, REJECTED_SCHEMA, partial_scores
from qtune_service.pipeline.shutdown import Stop
from qtune_service.pipeline.stages import EncodedShard, JobContext
from qtune_service.scoring.model_config import describe_model
from qtune_service.storage import file_io
from tests.instrumented_engine import BREAK, DIE_PREPARING, DIE_RUNNING, SCORE, WAIT, events
from tests.jobs import DEMO_MODEL, REPO, write_jsonl
from tests.waiting import wait_until

SAMPLES, TOKENS = 3, 4


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """Yield an executor with a cluster of its own, whose workers record events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QTUNE_TEST_EVENTS", str(tmp_path_factory.mktemp("events") / "events"))
        patch.setenv("PYTHONPATH", str(REPO))
        ray = RayExecutor()
        ray.start(Stop())
        yield ray
        ray.close()


@pytest.fixture
def log() -> Path:
    """Return the empty file of events."""
    path = Path(os.environ["QTUNE_TEST_EVENTS"])
    path.unlink(missing_ok=True)
    return path


def job(folder: Path, executor: RayExecutor, max_attempts: int) -> JobContext:
    """Return a job with a plan."""
    data = write_jsonl(folder / "d.jsonl", [{"input_ids": [1, 2], "labels": [-100, 2]}])
    spec = JobSpec(
        input=InputSpec(paths=(str(data),)),
        model=ModelSpec(name=DEMO_MODEL),
        engine={"name": "tests.instrumented_engine:build"},  # type: ignore[arg-type]
        output=OutputSpec(path=str(folder / "o")),
    )
    files = discover(spec.input.paths)
    chunks = split(files, spec.input)
    scans = [scan(chunk, spec.input, work=str(folder)) for chunk in chunks]
    plan = make_plan(files, chunks, scans, spec.input)
    file_io.write_bytes(Output(spec.output.path).at("_qtune", "plan.json"), plan.to_json().encode())
    retries = executor.retry_policy(max_attempts)
    return JobContext(spec, describe_model(spec.model), retries=retries, process_name=executor.process_name)


def shard(index: int, order: int) -> EncodedShard:
    """Return three samples of four tokens, which name their shard and what the engine does with it."""
    ids = np.array([[index, order, 20 + sample, 30 + index] for sample in range(SAMPLES)], np.int32).ravel()
    offsets = np.arange(SAMPLES + 1) * TOKENS
    columns = [
        pa.array([f"{index}-{sample}" for sample in range(SAMPLES)]),
        pa.repeat("made", SAMPLES),
        pa.array(np.arange(SAMPLES)),
        pa.array(np.zeros(SAMPLES, np.bool_)),
        list_column(ids, offsets, pa.int32()),
        list_column(np.tile(np.array([0, 0, 1, 1], np.int8), SAMPLES), offsets, pa.int8()),
        pa.array(np.ones(SAMPLES, np.int32)),
    ]
    return EncodedShard(pa.table(columns, schema=pa.schema(ENCODED_FIELDS)), REJECTED_SCHEMA.empty_table(), 0.0)


def score(executor: RayExecutor, context: JobContext, orders: Sequence[int]) -> Iterator[StageResult]:
    """Score shards in one actor, as a job does."""
    pool = Pool(1, 1, cpus=1.0, gpus=0.0, threads=1)
    stage = Stage(STAGE, ScoreShard, (context,), pool=pool, calls_in_flight=CALLS_IN_FLIGHT)
    items = [(index, shard(index, order)) for index, order in enumerate(orders)]
    return executor.run(items, stage, retries=context.retries)


def assert_scored(result: StageResult) -> None:
    """Check that each sample of a shard has its own scores."""
    assert result.problem is None
    expected = [[20.0 + sample, 30.0 + result.shard] for sample in range(SAMPLES)]
    assert result.value.rows["nll"].to_pylist() == result.value.rows["entropy"].to_pylist() == expected


def test_the_next_shard_is_ready_when_one_ends(executor: RayExecutor, log: Path, tmp_path: Path) -> None:
    """It is prepared while the engine scores, packed while the engine scores the next, and two shards are held."""
    context = job(tmp_path, executor, 1)
    for result in score(executor, context, [SCORE] * 6):
        assert_scored(result)
    happened = [(name, index) for name, index, _ in events(log)]
    ran = [index for name, index in happened if name == "run"]
    assert sorted(ran) == list(range(6))
    for last, index in pairwise(ran):
        assert happened.index(("prepared", index)) < happened.index(("ran", last)) < happened.index(("run", index))
    held: set[int] = set()
    for name, index in happened:
        held = held - {index} if name == "finished" else held | {index}
        assert len(held) <= CALLS_IN_FLIGHT


def test_a_broken_engine_costs_the_other_shard_nothing(executor: RayExecutor, log: Path, tmp_path: Path) -> None:
    """The engine fails on one shard, and its process ends with another one prepared: of one attempt each, only the
    failing shard's is used up.
    """
    results = {r.shard: r for r in score(executor, job(tmp_path, executor, 1), [BREAK, SCORE, SCORE])}
    assert "the device is broken" in str(results[0].problem)
    for index in (1, 2):
        assert_scored(results[index])
    assert [index for name, index, _ in events(log) if name == "run"].count(0) == 1


def test_a_killed_process_counts_for_the_shard_with_the_engine(
    executor: RayExecutor, log: Path, tmp_path: Path
) -> None:
    """A shard that kills its process has the attempts that the limit says. A prepared one loses none."""
    orders = [SCORE, DIE_RUNNING, SCORE, SCORE]
    results = {r.shard: r for r in score(executor, job(tmp_path, executor, 2), orders)}
    assert isinstance(results[1].problem, ShardFailedError)
    assert "its worker died" in str(results[1].problem)
    for index in (0, 2, 3):
        assert_scored(results[index])
    assert [index for name, index, _ in events(log) if name == "run"].count(1) == 2


def test_a_shard_that_cannot_be_prepared_is_found(executor: RayExecutor, log: Path, tmp_path: Path) -> None:
    """Its first death may be the other shard's fault. Then it has the process to itself, and uses up its attempts."""
    orders = [SCORE, DIE_PREPARING, SCORE, SCORE]
    results = {r.shard: r for r in score(executor, job(tmp_path, executor, 2), orders)}
    assert "its worker died" in str(results[1].problem)
    for index in (0, 2, 3):
        assert_scored(results[index])
    assert [index for name, index, _ in events(log) if name == "prepare"].count(1) <= 3


def test_a_stop_within_a_step(executor: RayExecutor, log: Path, tmp_path: Path) -> None:
    """The shard with the engine saves its scores so far. The prepared one was not begun and leaves nothing."""
    context = job(tmp_path, executor, 3)
    retries = context.retries
    assert retries is not None
    results = score(executor, context, [WAIT] * 3)
    stopped: list[set[int]] = []

    def stop() -> None:
        wait_until(lambda: "run" in {name for name, _, _ in events(log)} and ready(log), seconds=120)
        stopped.append(retries.stop())

    thread = threading.Thread(target=stop)
    thread.start()
    by_shard = {result.shard: result for result in results}
    thread.join()
    begun = {index for name, index, _ in events(log) if name == "run"}
    assert stopped == [begun]
    (first,) = begun
    assert all(isinstance(result.problem, StoppedError) for result in by_shard.values())
    assert len(by_shard) == 3
    assert "1 of 3 samples" in str(by_shard[first].problem)
    saved = partial_scores(context.output.read_partial(first), "instrumented 1 float32")
    assert [scores.nll.tolist() for scores in saved.values()] == [[20.0, 30.0 + first]]
    partials = Path(context.output.partial_uri(first)).parent
    assert [path.name for path in partials.iterdir()] == [f"{first:05}.arrow"]


def ready(log: Path) -> bool:
    """Return whether a second shard is prepared."""
    return len({index for name, index, _ in events(log) if name == "prepared"}) == CALLS_IN_FLIGHT
