"""A stopped job continues with other engine sizes, in a growing folder, and from the record of an earlier version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.errors import DataError, EngineError, OutputConflictError
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from tests.compare import differences
from tests.finished_outputs import DeadScorer, SilentSink, demo_records
from tests.jobs import DEMO_MODEL, manifest, write_jsonl


class Sink(SilentSink):
    """Keeps what the job says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.said.append(text)


def job(folder: Path, out: str = "out", **engine: Any) -> JobSpec:
    """Return a job over the folder of data, with an engine that fails at its second shard the first time."""
    return JobSpec(
        input=InputSpec(paths=(str(folder / "data"),), shard_bytes=4096),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name="tests.finished_outputs:DeadScorer", **engine),
        output=OutputSpec(path=str(folder / out)),
    )


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with data and an output of which one shard is scored."""
    monkeypatch.setattr(DeadScorer, "calls", 0)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", demo_records())
    with pytest.raises(EngineError, match="the engine died"):
        run_job(job(tmp_path), SilentSink(), executor=LocalExecutor())
    return tmp_path


def test_other_sizes_of_the_engine(stopped: Path) -> None:
    """The remedies for running out of memory change no score, so the output continues; another engine does not."""
    with pytest.raises(OutputConflictError, match=r"belongs to another job, which differs in engine\.name"):
        run_job(job(stopped).model_copy(update={"engine": EngineSpec(name="reference")}), Sink())
    other = job(stopped).model_copy(update={"prune": PruneSpec(sample_keep_ratio=0.3)})
    with pytest.raises(OutputConflictError, match=r"differs in prune\.sample_keep_ratio \(None there, 0\.3 here\)"):
        run_job(other, Sink())
    sink = Sink()
    smaller = job(stopped, logits_bytes=1 << 20, max_num_batched_tokens=512, enable_prefix_caching=False)
    run_job(smaller, sink, executor=LocalExecutor())
    assert any(line.startswith("continuing: 1 of") for line in sink.said)
    run_job(job(stopped, "undisturbed"), SilentSink(), executor=LocalExecutor())
    assert differences(stopped / "undisturbed", stopped / "out", tolerance=0) == []


def test_a_record_of_an_earlier_version(stopped: Path) -> None:
    """It holds the whole spec, without the fields that are newer, and a hash that was made in another way."""
    record = stopped / "out" / "_qtune" / "job.json"
    body = json.loads(record.read_text())
    del body["defining"]
    for name in ("messages_column", "column_map", "role_map", "config", "split"):
        del body["spec"]["input"][name]
    record.write_text(json.dumps(body | {"fingerprint": "another", "version": "0.0.1"}))
    run_job(job(stopped), SilentSink(), executor=LocalExecutor())
    assert manifest(stopped / "out")["counts"]["read"] == len(demo_records())


def test_new_files_are_left_out_and_named(stopped: Path) -> None:
    """The files of the plan are read to the end; a missing one is named."""
    write_jsonl(stopped / "data" / "b.jsonl", demo_records()[:3])
    sink = Sink()
    run_job(job(stopped), sink, executor=LocalExecutor())
    found = manifest(stopped / "out")
    assert found["counts"]["read"] == len(demo_records())
    (warning,) = (text for text in found["warnings"] if "new since this job was planned" in text)
    assert "b.jsonl" in warning
    assert warning in sink.said


def test_a_missing_file_is_named(stopped: Path) -> None:
    """Its shards could not be read."""
    write_jsonl(stopped / "data" / "b.jsonl", demo_records()[:3])
    (stopped / "data" / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl is gone"):
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())
