"""Jobs without Ray: failures, stops and continued runs behave as the documentation of LocalExecutor says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, LimitsSpec, ModelSpec, OutputSpec
from qtune_service.errors import EngineError
from qtune_service.pipeline import retries
from qtune_service.pipeline.executor import LocalExecutor, Stage
from qtune_service.pipeline.run import run_job
from qtune_service.pipeline.shutdown import EXIT_CODE
from qtune_service.samples import Sample, TokenScores
from tests.compare import differences
from tests.finished_outputs import DeadScorer, DrawnScorer, SilentSink, demo_records
from tests.jobs import DEMO_MODEL, REPO, environment, manifest, write_jsonl

CHILD = """
import sys
from qtune_service.config import JobSpec
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from qtune_service.pipeline.shutdown import Stop
from tests.finished_outputs import SilentSink
stop = Stop()
stop.install()
run_job(JobSpec.model_validate_json(sys.argv[1]), SilentSink(), executor=LocalExecutor(), stop=stop)
"""


class SlowScorer(DrawnScorer):
    """Takes a moment for each call."""

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Score, slowly."""
        time.sleep(0.1)
        return super().score(samples)


def job(folder: Path, out: str, engine: str = "DrawnScorer", **limits: int) -> JobSpec:
    """Run a job over several shards."""
    folder.mkdir(exist_ok=True)
    data = folder / "data.jsonl"
    if not data.exists():
        write_jsonl(data, demo_records())
    return JobSpec(
        input=InputSpec(paths=(str(data),), shard_bytes=4096),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name=f"{__name__}:{engine}"),
        output=OutputSpec(path=str(folder / out)),
        limits=LimitsSpec.model_validate(limits),
    )


def test_an_error_of_the_engine_ends_the_job_and_the_next_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process can take over. The finished shard stays, and the output is that of an undisturbed job."""
    monkeypatch.setattr(DeadScorer, "calls", 0)
    spec = job(tmp_path, "out", "DeadScorer")
    with pytest.raises(EngineError, match="the engine died"):
        run_job(spec, SilentSink(), executor=LocalExecutor())
    assert len(list((tmp_path / "out" / "_qtune" / "scored").iterdir())) == 1
    run_job(spec, SilentSink(), executor=LocalExecutor())
    run_job(job(tmp_path, "undisturbed"), SilentSink(), executor=LocalExecutor())
    assert differences(tmp_path / "undisturbed", tmp_path / "out", tolerance=0) == []


def test_a_failing_shard_is_retried_and_then_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that fails for good is a result with a problem; the others arrive."""
    monkeypatch.setattr(retries, "PAUSE_S", 0)
    tried: list[int] = []

    def work(index: int, value: str) -> str:
        tried.append(index)
        if index == 1:
            raise ValueError("no")
        return value.upper()

    executor = LocalExecutor()
    policy = executor.retry_policy(max_attempts=3)
    found = list(executor.run([(0, "a"), (1, "b"), (2, "c")], Stage("shout", work), retries=policy))
    assert [(result.shard, result.value) for result in found] == [(0, "A"), (1, None), (2, "C")]
    assert "shard 1, shout: ValueError: no" in str(found[1].problem)
    assert tried == [0, 1, 1, 1, 2]


def test_sigterm_saves_the_scores_of_a_shard_in_progress(tmp_path: Path) -> None:
    """The process exits with the code of a stop, without a manifest; the next run gives the undisturbed output."""
    spec = job(tmp_path, "out", "SlowScorer")
    child = subprocess.Popen([sys.executable, "-c", CHILD, spec.model_dump_json()], env=environment(), cwd=REPO)
    scored = tmp_path / "out" / "_qtune" / "scored"
    while child.poll() is None and not (scored.is_dir() and list(scored.iterdir())):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(timeout=60) == EXIT_CODE
    assert not (tmp_path / "out" / "manifest.json").exists()
    run_job(spec, SilentSink(), executor=LocalExecutor())
    run_job(job(tmp_path, "undisturbed", "SlowScorer"), SilentSink(), executor=LocalExecutor())
    assert differences(tmp_path / "undisturbed", tmp_path / "out", tolerance=0) == []


def test_no_ray_is_imported(tmp_path: Path) -> None:
    """A job under the local executor runs where Ray is not installed."""
    spec = job(tmp_path, "out")
    code = "import sys; sys.modules['ray'] = None\n" + CHILD
    done = subprocess.run(
        [sys.executable, "-c", code, spec.model_dump_json()],
        env=environment(), cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = manifest(tmp_path / "out")["counts"]
    assert counts["kept"] + counts["pruned"] + counts["rejected"] == counts["read"] > 100
    assert json.loads((tmp_path / "out" / "_qtune" / "progress.json").read_text())["stage"] == "done"
