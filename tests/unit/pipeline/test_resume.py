"""A stopped job continues with other engine sizes, in a growing folder, and from the record of an earlier version."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.errors import DataError, EngineError, EngineMismatchError, OutputConflictError
from qtune_service.output.layout import Output
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from qtune_service.scoring import choose_engine
from qtune_service.scoring.reference import installed_versions
from tests.compare import differences
from tests.earlier_version.make import NUM_RECORDS, SHARD_BYTES, put_back_time, replace_text
from tests.finished_outputs import DeadScorer, SilentSink, demo_records
from tests.jobs import DEMO_MODEL, REPO, manifest, write_jsonl


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


def test_an_unreadable_new_file_is_left_out_and_named(stopped: Path) -> None:
    """A file that is being written, or of another format, ends no job that does not read it."""
    (stopped / "data" / "b.jsonl").write_text("no JSON at all")
    (stopped / "data" / "c.parquet").write_bytes(b"PAR1 half a file")
    sink = Sink()
    run_job(job(stopped), sink, executor=LocalExecutor())
    found = manifest(stopped / "out")
    assert found["counts"]["read"] == len(demo_records())
    assert any("c.parquet" in text for text in found["warnings"])
    assert any("c.parquet" in text for text in sink.said)


def test_an_unreadable_file_of_the_plan_is_refused(stopped: Path) -> None:
    """Its shards could not be read."""
    (stopped / "data" / "a.jsonl").write_bytes(b"PAR1 something else")
    with pytest.raises(DataError, match=r"a\.jsonl"):
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())


# --- an output of an earlier version


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return a folder with an output that an earlier version began, and with its data."""
    made = REPO / "tests" / "earlier_version"
    shutil.copytree(made / "begun", tmp_path / "out")
    data = str(shutil.copy(made / "data.jsonl", tmp_path / "data.jsonl"))
    put_back_time(Path(data))
    replace_text(tmp_path / "out", {"@DATA@": data, "@MODEL@": DEMO_MODEL, "@OUT@": str(tmp_path / "out")})
    return tmp_path


def of_earlier(folder: Path, out: str = "out") -> JobSpec:
    """Return the job of that output."""
    return JobSpec(
        input=InputSpec(paths=(str(folder / "data.jsonl"),), shard_bytes=SHARD_BYTES),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name="tests.finished_outputs:DrawnScorer"),
        output=OutputSpec(path=str(folder / out)),
    )


def test_an_output_of_an_earlier_version_is_resumed(earlier: Path) -> None:
    """Its scored shards are kept, under the names of that version, and the result is that of a job from scratch."""
    before = {path: path.stat().st_mtime_ns for path in (earlier / "out" / "scores").iterdir()}
    sink = Sink()
    run_job(of_earlier(earlier), sink, executor=LocalExecutor())
    assert any(line.startswith("continuing: 3 of 4") for line in sink.said)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run_job(of_earlier(earlier, "fresh"), SilentSink(), executor=LocalExecutor())
    assert manifest(earlier / "out")["counts"]["read"] == NUM_RECORDS
    # The source is the path of the data on the machine that scored the shard, and there was no column for protection.
    ignored = frozenset({"source", "num_protected_tokens"})
    assert differences(earlier / "fresh", earlier / "out", tolerance=0, ignored=ignored) == []


def test_shards_that_an_earlier_version_pruned_are_not_mixed_with_others(earlier: Path) -> None:
    """Their masks lack the protection of end-of-turn tokens, so the message says which folder to remove."""
    folder = earlier / "out" / "_qtune" / "pruned"
    folder.mkdir()
    (folder / "00000.json").write_text(json.dumps({"kept": 1}))
    with pytest.raises(OutputConflictError, match="without keep_end_of_turn") as error:
        run_job(of_earlier(earlier), SilentSink(), executor=LocalExecutor())
    assert str(folder) in error.value.hint
    shutil.rmtree(folder)
    assert run_job(of_earlier(earlier), SilentSink(), executor=LocalExecutor())["counts"]["read"] == NUM_RECORDS


# --- an output of a later version


def change_owner(out: Path, **changes: Any) -> None:
    """Change the record of the owner."""
    record = out / "_qtune" / "job.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def test_a_later_versions_field_at_its_default(stopped: Path) -> None:
    """The record names no field that has its default, so the job is the same one."""
    spec = json.loads((stopped / "out" / "_qtune" / "job.json").read_text())["spec"]
    spec["engine"]["speculation"] = False
    change_owner(stopped / "out", spec=spec, version="9.0.0")
    run_job(job(stopped), SilentSink(), executor=LocalExecutor())
    assert manifest(stopped / "out")["counts"]["read"] == len(demo_records())


def test_a_later_versions_field_with_a_value(stopped: Path) -> None:
    """This version cannot do what it asks for, so the output is refused, and the field is named."""
    defining = json.loads((stopped / "out" / "_qtune" / "job.json").read_text())["defining"]
    defining["engine"]["speculation"] = True
    change_owner(stopped / "out", defining=defining, version="9.0.0")
    with pytest.raises(OutputConflictError, match=r"engine\.speculation \(True there, None here\)"):
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())


# --- engines


def change_engine(out: Path, **changes: str) -> None:
    """Change the engine that the markers name."""
    for path in (out / "_qtune" / "scored").glob("*.json"):
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "engine": {**body["engine"], **changes}}))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"name": "other"}, "differ in name"),
        ({"version": "0.9"}, "Install drawn 0.9 on this node to continue"),
        ({"dtype": "bfloat16"}, "Pass --dtype bfloat16"),
        ({"device": "NVIDIA H200"}, "Run it on nodes with a GPU"),
    ],
)
def test_another_engine_is_refused_before_it_scores(stopped: Path, changes: dict[str, str], remedy: str) -> None:
    """The engine of the scored shards is that of all others. The error says how to go on."""
    change_engine(stopped / "out", **changes)
    scored = {path.name for path in (stopped / "out" / "_qtune" / "scored").iterdir()}
    with pytest.raises(EngineMismatchError, match=remedy):
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())
    assert {path.name for path in (stopped / "out" / "_qtune" / "scored").iterdir()} == scored


def test_a_patch_of_the_engine_is_no_other_engine(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of 0.32.1 and 0.32.2 are of one class."""
    change_engine(stopped / "out", version="0.32.1")
    monkeypatch.setattr(DeadScorer, "info", replace(DeadScorer.info, version="0.32.2+cu130"))
    run_job(job(stopped), SilentSink(), executor=LocalExecutor())
    assert manifest(stopped / "out")["counts"]["read"] == len(demo_records())


def test_a_mix_is_refused_at_the_start(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output in which two engines scored, by an earlier version, is refused before a model is loaded."""
    marker = next((stopped / "out" / "_qtune" / "scored").glob("*.json"))
    body = json.loads(marker.read_text())
    marker.with_name("00002.json").write_text(json.dumps({**body, "engine": {**body["engine"], "name": "other"}}))
    monkeypatch.setattr(choose_engine, "build_scorer", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(EngineMismatchError, match="scored by different engines: drawn 1 in float32 on a CPU, other 1"):
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())


def reference_job(folder: Path, name: str) -> JobSpec:
    """Return the job on a built-in engine."""
    return job(folder).model_copy(update={"engine": EngineSpec(name=name)})


@pytest.fixture
def by_reference(stopped: Path) -> Path:
    """Return a folder whose output was begun by `auto`, which chose the reference engine."""
    change_owner(stopped / "out", defining=reference_job(stopped, "auto").defining())
    versions = installed_versions()
    change_engine(stopped / "out", name="reference", version=versions, dtype="float32", device="cpu")
    return stopped


def test_a_built_in_engine_is_compared_before_it_loads(by_reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are read where the version is another one."""
    change_engine(by_reference / "out", version="transformers 4.1.0, torch 2.0.1")
    monkeypatch.setattr(choose_engine, "build_scorer", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(EngineMismatchError, match=r"Install reference transformers 4\.1, torch 2\.0 on this node"):
        run_job(reference_job(by_reference, "auto"), SilentSink(), executor=LocalExecutor())


def test_auto_is_decided_once(by_reference: Path) -> None:
    """A resumed job keeps the engine that `auto` chose, also where vLLM can be used now."""
    assert choose_engine.choose_engine(ModelSpec(name=DEMO_MODEL), EngineSpec()).name == "vllm"
    run_job(reference_job(by_reference, "auto"), SilentSink(), executor=LocalExecutor())
    assert manifest(by_reference / "out")["engine"]["name"] == "reference"


# --- rows


@pytest.mark.parametrize(("stage", "what"), [("scored", "read"), ("pruned", "kept")])
def test_missing_rows_are_named(stopped: Path, stage: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that holds fewer records than were planned, or than its marker says, completes no output."""
    mark = Output.mark

    def forgetful(self: Output, at: str, shard: int, record: dict[str, Any]) -> dict[str, Any]:
        lost = {what: record[what] - 1} if (at, shard) == (stage, 2) else {}
        return mark(self, at, shard, {**record, **lost})

    monkeypatch.setattr(Output, "mark", forgetful)
    with pytest.raises(OutputConflictError, match=r"records are missing or repeated.*of shard 2|shard 2 \(") as failure:
        run_job(job(stopped), SilentSink(), executor=LocalExecutor())
    assert f"below _qtune/{stage}/" in failure.value.hint
    assert not (stopped / "out" / "manifest.json").exists()
