"""Stages on one shard, without Ray: what is written, and what happens to samples that cannot be scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.planner import make_plan, scan, split
from qtune_service.output.layout import Output
from qtune_service.pipeline.score_shard import ScoreShard
from qtune_service.pipeline.stages import JobContext, commit_shard, encode_shard
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring import choose_engine
from qtune_service.scoring.model_config import describe_model
from qtune_service.scoring.scorer import EngineInfo, Watch, never
from qtune_service.storage import file_io
from tests.jobs import DEMO_MODEL, rows, write_jsonl

POISON, STRANGE = 7, 9


class FragileScorer:
    """Fails on a sample that ends in POISON, is not a number for one that ends in STRANGE; else scores are 1 and 2."""

    info = EngineInfo("fragile", "1", "cpu", "float32", "None", 64, 1000)

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:  # noqa: ARG002 - the contract
        """Score, or raise for the whole call as engines do."""
        if any(s.input_ids[-1] == POISON for s in samples):
            raise ValueError("cannot take this one")
        return [self._one(s) for s in samples]

    def _one(self, sample: Sample) -> TokenScores:
        n = int(sample.loss_mask[1:].sum())
        value = math.nan if sample.input_ids[-1] == STRANGE else 1.0
        return TokenScores(np.full(n, value, np.float32), np.full(n, 2.0, np.float32))

    def close(self) -> None:
        """Nothing is held."""


def job(tmp_path: Path, endings: list[int]) -> JobContext:
    """Return a job over tokenized records of four tokens, planned."""
    records = [
        {"input_ids": [1, 2, 3, e], "labels": [-100, -100, 3, e], "note": f"n{e}", "source": "mine"} for e in endings
    ]
    data = write_jsonl(tmp_path / "d.jsonl", records)
    spec = JobSpec(
        input=InputSpec(paths=(str(data),), category_field="source"),
        model=ModelSpec(name=DEMO_MODEL),
        output=OutputSpec(path=str(tmp_path / "o")),
    )
    output = Output(spec.output.path)
    files = discover(spec.input.paths)
    chunks = split(files, spec.input)
    scans = [scan(chunk, spec.input, work=output.at("_qtune", "input")) for chunk in chunks]
    plan = make_plan(files, chunks, scans, spec.input)
    file_io.write_bytes(output.at("_qtune", "plan.json"), plan.to_json().encode())
    return JobContext(spec, replace(describe_model(spec.model), vocab_size=1000, max_model_len=64))


def test_a_poison_sample_is_set_aside_and_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample that the engine refuses, and one without a finite score, are rejected with reason and place."""
    monkeypatch.setattr(choose_engine, "build_scorer", lambda _model, _engine: FragileScorer())
    context = job(tmp_path, [4, POISON, 5, STRANGE, 6])
    encoded = encode_shard(0, None, context)
    marker = commit_shard(0, ScoreShard(context)(0, encoded), context)
    assert (marker.read, marker.scored, marker.rejected) == (5, 3, 2)
    out = tmp_path / "o"
    rejected = {r["line"]: (r["reason"], r["detail"]) for r in rows(out / "rejected")}
    assert rejected[2] == ("scoring_failed", "ValueError: cannot take this one")
    assert rejected[4][0] == "non_finite_score"
    assert {r["category"] for r in rows(out / "rejected")} == {"mine"}, "its own column, not our source"
    scores = rows(out / "scores")
    assert [r["line"] for r in scores] == [1, 3, 5]
    assert [r["note"] for r in scores] == ["n4", "n5", "n6"]
    assert all(r["nll"] == [1.0, 1.0] and r["mean_entropy"] == 2.0 and r["num_tokens"] == 2 for r in scores)


def test_a_shard_without_usable_rows_writes_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers stumble over Parquet files without rows, so there are none; the marker still counts the shard."""
    monkeypatch.setattr(choose_engine, "build_scorer", lambda _model, _engine: FragileScorer())
    context = job(tmp_path, [POISON])
    marker = commit_shard(0, ScoreShard(context)(0, encode_shard(0, None, context)), context)
    assert (marker.scored, marker.rejected) == (0, 1)
    assert not (tmp_path / "o" / "scores").exists()


def test_a_finished_shard_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies between marking a shard and telling so, and its task is done again: without scoring or writing."""
    scorer = FragileScorer()
    monkeypatch.setattr(choose_engine, "build_scorer", lambda _model, _engine: scorer)
    context = job(tmp_path, [4, 5])
    encoded = encode_shard(0, None, context)
    marker = commit_shard(0, ScoreShard(context)(0, encoded), context)
    (part,) = (tmp_path / "o" / "scores").iterdir()
    before = part.stat()

    def fail(_samples: Sequence[Sample], _watch: Watch = never) -> list[TokenScores]:
        raise AssertionError("scored again")

    monkeypatch.setattr(scorer, "score", fail)
    again = commit_shard(0, ScoreShard(context)(0, encoded), context)
    assert again == marker
    assert (part.stat().st_ino, part.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_out_of_vocabulary_tokens_never_reach_the_engine(tmp_path: Path) -> None:
    """A token id that the model does not have is the record's fault and is told at encoding."""
    context = job(tmp_path, [4, 5000])
    tables = encode_shard(0, None, context)
    assert tables.rejected["reason"].to_pylist() == ["token_out_of_vocab"]
    assert tables.rows.num_rows == 1
