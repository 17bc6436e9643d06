"""Whole jobs through the command line, on a real Ray with its processes: the main promise of the project."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qtune_service.config import JobSpec, OutputSpec
from qtune_service.pipeline import population
from qtune_service.pipeline.progress import FileSink
from qtune_service.pipeline.run import run_job
from tests.jobs import DEMO_MODEL, REPO, check_output, manifest, qtune, rows, table, write_jsonl

DEMO_DATA = REPO / "examples" / "demo" / "data.jsonl"
ROWS = 240


def chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    """Return a record in messages form."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **columns}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with several formats, good rows and each kind of bad row."""
    folder = tmp_path_factory.mktemp("corpus")
    demo = [json.loads(line) for line in DEMO_DATA.read_text().splitlines()[:ROWS]]
    write_jsonl(folder / "a_messages.jsonl", demo)
    with (folder / "b_bad.jsonl").open("wb") as file:
        file.write(json.dumps(chat("good?", "yes, good", source="mine", score=1.5)).encode() + b"\n")
        file.write(b'{"messages": [\n')
        file.write(b"\xff\xfe not utf-8\n")
        file.write(b"[1, 2]\n\n")
        file.write(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}).encode() + b"\n")
        file.write(json.dumps(chat("empty", "")).encode() + b"\n")
        file.write(json.dumps(chat("long", "word " * 5000)).encode() + b"\n")
    alpaca = {"instruction": "Say hi", "input": "", "output": "hi there"}
    (folder / "c_alpaca.json").write_text(json.dumps([alpaca] * 3))
    pairs = {"question": {"0": "one?", "1": "two?"}, "answer": {"0": "the first", "1": "the second"}}
    (folder / "d_columns.json").write_text(json.dumps(pairs))
    return folder


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the corpus pruned through vLLM in float32."""
    out = tmp_path_factory.mktemp("finished") / "out"
    arguments = ("--model", DEMO_MODEL, "--engine", "vllm", "--dtype", "float32", "--output", out)
    done = qtune("prune", corpus, *arguments, "--category-field", "category", "--shard-bytes", 16384)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_everything_read_is_kept_pruned_or_rejected(finished: Path) -> None:
    """Kept + pruned + rejected = read, in the manifest and in the rows, and each bad row has its place and reason."""
    m = manifest(finished)
    c = m["counts"]
    assert c["read"] == ROWS + 7 + 3 + 2
    assert c["kept"] + c["pruned"] + c["rejected"] == c["read"]
    assert (len(rows(finished / "scores")), len(rows(finished / "pruned"))) == (c["scored"], c["kept"])
    reasons = {(Path(r["source"]).name, r["line"]): r["reason"] for r in rows(finished / "rejected")}
    assert {line: reason for (name, line), reason in reasons.items() if name == "b_bad.jsonl"} == {
        2: "bad_json",
        3: "not_utf8",
        4: "not_an_object",
        6: "no_assistant_turn",
        7: "empty_response",
        8: "too_long",
    }
    assert m["rejected_reasons"]["too_long"] == 1


def test_output_passes_the_independent_check(finished: Path, shared_dir: Path) -> None:
    """An independent program finds no fault with the output."""
    assert check_output(shared_dir, finished).endswith("0 checks failed\n")


def test_scores_are_those_of_a_full_float64_softmax(finished: Path) -> None:
    """Scores of the pipeline, vLLM included, are exact: within 1e-4 of full logits and a float64 softmax."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    for row in rows(finished / "scores")[::9]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
        scored = np.array(row["loss_mask"][1:]) == 1
        nll = -log_p.gather(-1, ids[0, 1:, None])[:, 0].numpy()[scored]
        entropy = -(log_p.exp() * log_p).sum(-1).numpy()[scored]
        assert np.abs(nll - row["nll"]).max() < 1e-4
        assert np.abs(entropy - row["entropy"]).max() < 1e-4


def test_own_columns_survive(finished: Path) -> None:
    """Columns of the input reach the product unchanged, also one whose name scores/ needs for itself."""
    demo = [json.loads(line) for line in DEMO_DATA.read_text().splitlines()[:ROWS]]
    scores = {r["sample_id"]: r for r in rows(finished / "scores")}
    for row in rows(finished / "pruned"):
        origin = scores[row["qtune"]["sample_id"]]
        if origin["source"].endswith("a_messages.jsonl"):
            record = demo[origin["line"] - 1]
            assert (row["category"], row["planted"]) == (record["category"], record["planted"])
            assert [m["content"] for m in row["messages"]] == [m["content"] for m in record["messages"]]
    (mine,) = [r for r in scores.values() if r["source"].endswith("b_bad.jsonl")]
    assert (mine["original_source"], mine["score"]) == ("mine", 1.5)
    assert "source" in table(finished / "pruned").column_names


def test_quadrants_say_why_a_sample_was_dropped(finished: Path) -> None:
    """quadrants/ holds each scored sample once, with its ranks, and agrees with the product."""
    found = {r["sample_id"]: r for r in rows(finished / "quadrants")}
    assert set(found) == {r["sample_id"] for r in rows(finished / "scores")}
    kept = {i for i, r in found.items() if r["quadrant"] in ("Q2", "Q4")}
    assert kept == {r["qtune"]["sample_id"] for r in rows(finished / "pruned")}
    assert all(0 < r["error_rank"] < 1 and 0 < r["entropy_rank"] < 1 for r in found.values())


def test_trainers_read_the_product(finished: Path) -> None:
    """datasets, pandas, polars and DuckDB read pruned/ as it is."""
    import duckdb
    import pandas as pd
    import polars as pl
    from datasets import load_dataset

    parts = sorted(str(p) for p in (finished / "pruned").glob("*.parquet"))
    data = load_dataset("parquet", data_files=parts, split="train", cache_dir=str(finished.parent / "cache"))
    kept = manifest(finished)["counts"]["kept"]
    assert len(data) == kept == len(pd.read_parquet(finished / "pruned")) == len(pl.read_parquet(parts))
    assert duckdb.sql(f"select count(*) from '{finished}/pruned/*.parquet'").fetchall() == [(kept,)]
    assert all(set(r["labels"]) - {-100} <= set(r["input_ids"]) for r in data)


def test_the_same_command_again_does_nothing(finished: Path, corpus: Path) -> None:
    """A complete output is left as it is, at once; another spec in the same place is refused and names the field."""
    before = (finished / "manifest.json").stat().st_mtime_ns
    common = (corpus, "--model", DEMO_MODEL, "--engine", "vllm", "--dtype", "float32", "--output", finished)
    same = qtune("prune", *common, "--category-field", "category", "--shard-bytes", 16384)
    assert (same.returncode, (finished / "manifest.json").stat().st_mtime_ns) == (0, before)
    assert "already complete" in same.stderr
    other = qtune("prune", *common, "--category-field", "category", "--shard-bytes", 16384, "--sample-keep-ratio", 0.25)
    assert other.returncode == 2
    assert "sample_keep_ratio" in other.stderr
    assert "--from-scores" in other.stderr


def test_pruning_again_needs_no_model(finished: Path, corpus: Path, tmp_path: Path, shared_dir: Path) -> None:
    """--from-scores gives what a new job with that ratio would, without the model and the data."""
    again = tmp_path / "again"
    done = qtune("prune", "--from-scores", finished, "--output", again, "--sample-keep-ratio", 0.25)
    assert done.returncode == 0, done.stderr
    c = manifest(again)["counts"]
    assert c["kept"] == pytest.approx(0.25 * c["scored"], abs=4)
    assert c["rejected"] == manifest(finished)["counts"]["rejected"]
    assert check_output(shared_dir, again).endswith("0 checks failed\n")
    assert table(again / "scores").equals(table(finished / "scores"))


def test_another_strategy_from_the_same_scores(finished: Path, tmp_path: Path) -> None:
    """The target is met by other samples, tokens of every kept one are pruned, and weights stand beside them."""
    out = tmp_path / "infobatch"
    flags = ("--strategy", "infobatch", "--token-strategy", "random", "--sample-keep-ratio", 0.6, "--seed", 3)
    done = qtune("prune", "--from-scores", finished, "--output", out, *flags)
    assert done.returncode == 0, done.stderr
    body, kept = manifest(out), rows(out / "pruned")
    assert len(kept) == body["counts"]["kept"] == body["selection"]["target"]
    assert {row["qtune"]["quadrant"] for row in kept} > {"Q2", "Q4"}
    mean = body["loss_weights"]["mean_loss"]
    for row in kept:
        is_easy = math.log(row["qtune"]["perplexity"]) < mean
        assert row["qtune"]["loss_weight"] == body["loss_weights"]["below_mean" if is_easy else "at_or_above_mean"]
        trained = row["qtune"]["tokens_kept"] + row["qtune"]["tokens_removed"]
        assert row["qtune"]["tokens_kept"] == sum(row["loss_mask"]) == math.ceil(round(0.7 * trained, 9))
    chosen = {row["sample_id"] for row in rows(out / "quadrants") if row["kept"]}
    assert chosen == {row["qtune"]["sample_id"] for row in kept}


def test_score_then_prune(tmp_path: Path) -> None:
    """`qtune score` writes scores only; they are pruned later."""
    data = write_jsonl(tmp_path / "d.jsonl", [chat(f"{i}?", f"it is {i}") for i in range(20)])
    scored, out = tmp_path / "scored", tmp_path / "out"
    done = qtune("score", data, "--model", DEMO_MODEL, "--engine", "reference", "--output", scored)
    assert done.returncode == 0, done.stderr
    assert not (scored / "pruned").exists()
    done = qtune("prune", "--from-scores", scored, "--output", out)
    assert done.returncode == 0, done.stderr
    assert manifest(out)["counts"]["scored"] == 20
    shown = qtune("inspect", out)
    assert "valuable misconception" in shown.stdout


def test_job_files_and_custom_rule(tmp_path: Path) -> None:
    """`qtune run` takes TOML; a user's function may label the quadrants."""
    data = write_jsonl(tmp_path / "d.jsonl", [chat(f"{i}?", f"it is {i}") for i in range(12)])
    rule = "import numpy as np\ndef all_q4(plane):\n    return np.full(len(plane.labels), 4)\n"
    (tmp_path / "my_rule.py").write_text(rule)
    spec = f"""
[input]
paths = ["{data}"]
[model]
name = "{DEMO_MODEL}"
[engine]
name = "reference"
[prune]
quadrant_rule = "my_rule:all_q4"
[output]
path = "{tmp_path / "out"}"
"""
    (tmp_path / "job.toml").write_text(spec)
    done = qtune("run", tmp_path / "job.toml", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "out")["counts"]["Q4"] == 12


def test_parquet_input_keeps_its_types(tmp_path: Path) -> None:
    """Own columns of Parquet input come out with the very types they had."""
    import datetime as dt

    import pyarrow as pa

    when = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    columns = {
        "prompt": [f"{i}?" for i in range(8)],
        "completion": [f"it is {i}" for i in range(8)],
        "when": pa.array([when] * 8, pa.timestamp("us", "UTC")),
        "blob": pa.array([bytes([i]) for i in range(8)], pa.binary()),
    }
    data = tmp_path / "d.parquet"
    pq.write_table(pa.table(columns), data)
    done = qtune("prune", data, "--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    got = table(tmp_path / "o" / "pruned")
    assert got.schema.field("when").type == pa.timestamp("us", "UTC")
    assert set(got["blob"].to_pylist()) <= {bytes([i]) for i in range(8)}


def test_take_and_limit(tmp_path: Path) -> None:
    """--take reads the first N of each category and nothing else."""
    data = write_jsonl(tmp_path / "d.jsonl", [chat(f"{i}?", f"it is {i}", kind="ab"[i % 2]) for i in range(40)])
    arguments = ("--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o", "--category-field", "kind")
    done = qtune("prune", data, *arguments, "--take", "a=7", "--take", "b=3")
    assert done.returncode == 0, done.stderr
    kinds = [r["kind"] for r in rows(tmp_path / "o" / "scores")]
    assert (kinds.count("a"), kinds.count("b"), len(kinds)) == (7, 3, 10)


def test_gsm8k_sample_with_a_base_model(shared_dir: Path, tmp_path: Path) -> None:
    """A base model without a template, question/answer columns, real data: the output is right."""
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("".join((shared_dir / "data" / "gsm8k_test.jsonl").read_text().splitlines(keepends=True)[:200]))
    columns = ("--prompt-column", "question", "--completion-column", "answer")
    model = shared_dir / "models" / "stories260K"
    done = qtune("prune", data, "--model", model, *columns, "--engine", "vllm", "--output", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert check_output(shared_dir, tmp_path / "o").endswith("0 checks failed\n")
    shutil.rmtree(tmp_path / "o")


def test_a_population_too_large_for_the_driver_gives_the_same(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ray tasks take the samples through stage 1 in groups, every table and figure is the same."""
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 50)
    out = tmp_path / "groups"
    spec = JobSpec.model_validate(manifest(finished)["spec"])
    spec = spec.model_copy(update={"output": OutputSpec(path=str(out)), "from_scores": str(finished)})
    again = run_job(spec, FileSink(lambda _body: None))
    assert len(list((out / "scores").iterdir())) > 3
    for folder in ("quadrants", "pruned"):
        assert table(out / folder).equals(table(finished / folder)), folder
    for name in ("counts", "tokens", "thresholds", "selection", "warnings"):
        assert again[name] == manifest(finished)[name], name
    summaries = [json.loads((o / "summary_statistics.json").read_text()) for o in (out, finished)]
    assert summaries[0]["distributions"] == summaries[1]["distributions"]
    assert not (out / "_qtune" / "ranks").exists()
