"""The scoring benchmark measures what it says: routes that agree, arithmetic that is counted right, honest tables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.scoring import material, measure, processes, routes, table, worker
from benchmarks.scoring.__main__ import parse
from qtune_service.config import ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import scored_positions

NUM_RECORDS = 8


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small operations on two threads crawl on a machine that is busy with other tests."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Scene:
    """A very small model and the samples made for it."""

    shape: Any
    model: Path
    data: Path
    samples: list[Sample]
    folder: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("bench")
    shape = material.Shape(hidden=128, layers=2, heads=2, kv_heads=1, intermediate=192, vocab=8192)
    model, data = material.make_model(shape, folder / "model"), folder / "data.jsonl"
    material.write_records(data, NUM_RECORDS)
    samples = material.encode(data, model, shape)
    material.save_samples(folder / "samples.npz", samples)
    return Scene(shape, model, data, samples, folder)


@pytest.fixture(scope="module")
def setting(scene: Scene) -> Any:
    return processes.Setting(scene.model, "float32", 2, scene.data, scene.folder / "samples.npz", scene.folder)


def _flat(scores: list[TokenScores]) -> dict[str, Any]:
    return {name: np.concatenate([getattr(s, name) for s in scores]) for name in ("nll", "entropy")}


# --- what is scored


def test_sixty_per_cent_of_the_tokens_are_trained_and_all_are_in_the_vocabulary(scene: Scene) -> None:
    """The made samples are what the tables say of them."""
    ids = np.concatenate([s.input_ids for s in scene.samples])
    masks = np.concatenate([s.loss_mask for s in scene.samples])
    assert len(scene.samples) == NUM_RECORDS
    assert 0.58 < masks.mean() < 0.62
    assert ids.min() >= 0
    assert ids.max() < scene.shape.vocab


def test_only_the_answer_is_trained(scene: Scene) -> None:
    """The template's generation markers reach the mask: one run of tokens, up to the end of the turn."""
    from transformers import AutoTokenizer

    end_of_turn = AutoTokenizer.from_pretrained(str(scene.model)).convert_tokens_to_ids("<|im_end|>")
    for sample in scene.samples:
        trained = np.flatnonzero(sample.loss_mask)
        assert np.array_equal(trained, np.arange(trained[0], trained[-1] + 1))
        assert sample.input_ids[trained[-1]] == end_of_turn


def test_no_two_samples_share_more_than_the_header(scene: Scene) -> None:
    """Prefix caching has nothing to win, so no route gets its work for free."""
    heads = [tuple(s.input_ids[:12].tolist()) for s in scene.samples]
    assert len(set(heads)) == len(heads)


def test_a_model_is_made_once(scene: Scene) -> None:
    """A second run finds the folder and leaves it as it is."""
    weights = scene.model / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert material.make_model(scene.shape, scene.model) == scene.model
    assert weights.stat().st_mtime_ns == before


def test_samples_come_back_from_disk_unchanged(scene: Scene) -> None:
    """Every route reads the very tokens that were written."""
    loaded = material.load_samples(scene.folder / "samples.npz")
    for ours, theirs in zip(scene.samples, loaded, strict=True):
        assert np.array_equal(ours.input_ids, theirs.input_ids)
        assert np.array_equal(ours.loss_mask, theirs.loss_mask)


# --- the routes


def test_the_torch_routes_agree_and_stay_below_the_peak(scene: Scene) -> None:
    """Script, batches and reference engine give the same float32 scores, and none is faster than the machine."""
    model = ModelSpec(name=str(scene.model), dtype="float32")
    peak = measure.measure_peak("float32", sizes=((512, 512, 512), (1024, 1024, 1024)))
    flops = measure.flops_needed(scene.shape, scene.samples)
    scores = {}
    for name in ("script", "batched", "reference"):
        score = getattr(routes, f"build_{name}")(model)
        started_s = time.perf_counter()
        scores[name] = _flat(score(scene.samples))
        assert 0 < flops / (time.perf_counter() - started_s) < peak.flops_per_s
    num_trained = sum(len(scored_positions(s)) for s in scene.samples)
    assert scores["script"]["nll"].shape == (num_trained,)
    for name in ("batched", "reference"):
        for what in ("nll", "entropy"):
            difference = table.max_diff(scores, name, "script", what)
            assert difference is not None
            assert difference < 1e-4


def test_scores_vary_from_token_to_token(scene: Scene) -> None:
    """The random weights are wide enough that scores put at a wrong token differ far beyond rounding."""
    score = routes.build_batched(ModelSpec(name=str(scene.model), dtype="float32"))
    scores = _flat(score(scene.samples[:2]))
    assert np.abs(np.diff(scores["nll"])).max() > 1
    assert np.abs(np.diff(scores["entropy"])).max() > 0.02


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_batches_hold_each_sample_once_within_the_budget(budget: int) -> None:
    """Padded size stays within the budget, but for a sample that alone exceeds it."""
    lengths = np.random.default_rng(0).integers(1, 90, 50).tolist()
    batches = routes.like_lengths(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_the_guess_from_the_top_is_right_for_a_flat_tail_and_wrong_else() -> None:
    """Top-20 entropy is not the entropy: it equals it only where all other tokens are equally likely."""
    guess = routes.entropy_guess
    rng = np.random.default_rng(0)
    flat_tail = np.concatenate([rng.random(20) + 1, np.full(980, 0.01)])
    steep_tail = np.sort(np.exp(3 * rng.normal(size=1000)))[::-1]
    errors = []
    for weights in (flat_tail, steep_tail):
        p = np.sort(weights / weights.sum())[::-1]
        exact = -(p * np.log(p)).sum()
        errors.append(abs(float(guess(np.log(p[None, :20]).astype(np.float32), 1000)[0]) - exact))
    assert errors[0] < 1e-5
    assert errors[1] > 0.1


# --- yardsticks


def test_the_arithmetic_is_that_of_the_model() -> None:
    """The formula equals torch's own count, less the half of attention that is not causal and the unused last row."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = material.Shape(hidden=128, layers=3, heads=4, kv_heads=2, intermediate=160, vocab=300)
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        attn_implementation="eager",
    )
    length = 50
    network: Any = Qwen2ForCausalLM(config)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    unneeded = 2 * shape.layers * shape.hidden * length**2 + 2 * shape.hidden * shape.vocab
    sample = Sample(np.zeros(length, np.int32), np.array([0] + [1] * (length - 1), np.int8))
    needed = measure.flops_needed(shape, [sample])
    assert needed == pytest.approx(counter.get_total_flops() - unneeded, rel=1e-3)


def test_memory_is_that_of_the_whole_tree() -> None:
    """What a grandchild holds counts."""
    hold = "import time; held = bytearray(200 << 20); time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    with subprocess.Popen([sys.executable, "-c", start]) as process:
        with measure.MemorySampler(process.pid, every_s=0.05) as memory:
            process.wait()
        assert process.returncode == 0
    assert 200 << 20 < memory.peak_bytes < 400 << 20


# --- from a route to the table


def test_threads_that_the_command_would_not_keep_to_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A table whose rows ran on different numbers of threads would compare nothing."""
    threads = str((os.cpu_count() or 1) + 1)
    with pytest.raises(SystemExit):
        parse(["--threads", threads])
    assert "leave --threads out" in capsys.readouterr().err
    assert parse(["--threads", threads, "--routes", "engine", "script"]).threads == int(threads)


def test_a_worker_leaves_its_times_and_scores(scene: Scene, setting: Any) -> None:
    """What a worker writes is what the table reads."""
    task = worker.Task("batched", str(scene.model), "float32", str(setting.samples), str(scene.folder / "batched"))
    result = worker.run(task)
    scores = processes.scores_of("batched", setting)
    assert isinstance(result["score_s"], float)
    assert result["score_s"] > 0
    assert len(scores["nll"]) == len(scores["entropy"]) == sum(len(scored_positions(s)) for s in scene.samples)


def test_a_route_that_fails_is_a_row_with_its_reason(scene: Scene, setting: Any) -> None:
    """One broken route does not cost the others, and does not pass for a fast one."""
    outcome = processes.run_route("no-such-route", setting, scene.samples)
    assert "KeyError: 'no-such-route'" in outcome.error
    broken = processes.Outcome("script", error=outcome.error)
    (row,) = table.make_rows([broken], {}, 100, 1.0, 1.0)
    assert row.tokens_per_s is None
    assert "| baseline script | failed |" in table.render([row])
    assert "no-such-route" in table.render([row])


def test_a_job_with_other_tokens_is_refused(scene: Scene, setting: Any) -> None:
    """End to end counts only where it scored the samples that the others scored."""
    output = scene.folder / "job"
    (output / "scores").mkdir(parents=True)

    def write(samples: list[Sample]) -> None:
        columns: dict[str, Any] = {n: [getattr(s, n) for s in samples] for n in ("input_ids", "loss_mask")}
        values = [np.arange(len(scored_positions(s)), dtype=np.float32) for s in samples]
        pq.write_table(pa.table({**columns, "nll": values, "entropy": values}), output / "scores/part-00000.parquet")

    write(scene.samples)
    processes._take_scores(output, setting, scene.samples)
    num_trained = sum(len(scored_positions(s)) for s in scene.samples)
    assert len(processes.scores_of("qtune", setting)["nll"]) == num_trained
    write(scene.samples[::-1])
    with pytest.raises(processes.RouteFailedError, match="input_ids are not those"):
        processes._take_scores(output, setting, scene.samples)


def test_the_table_relates_routes_to_the_bare_engine() -> None:
    """Speed, ratio, share of the peak and differences follow from what was measured."""
    outcome = processes.Outcome
    outcomes = [outcome(route, 1.0, seconds, 30.0, 2**30) for route, seconds in (("engine", 10.0), ("script", 20.0))]
    scores = {
        "engine": {"nll": np.array([1.0, 2.0]), "entropy": np.array([3.0, 3.0])},
        "script": {"nll": np.array([1.0, 2.5]), "entropy": np.array([3.0, 2.75])},
    }
    engine, script = table.make_rows(outcomes, scores, num_tokens=40_000, flops=1e12, peak_flops_per_s=2e11)
    assert (engine.tokens_per_s, engine.x_engine, engine.peak_share) == (4000, 1, 0.5)
    assert (script.tokens_per_s, script.x_engine, script.peak_share) == (2000, 0.5, 0.25)
    assert (engine.max_diff_nll, engine.max_diff_entropy) == (0.5, 0.25)
    assert (script.max_diff_nll, script.max_diff_entropy) == (None, None)
    assert "| bare engine | 4,000 | 1.00 | 50% | 1.0 | 10.0 | 30.0 | 1.00 | 0.5 | 0.25 |" in table.render([engine])


def test_missing_and_nan_scores_are_no_agreement() -> None:
    """A route that leaves tokens out, or gives NaN, differs without bound."""
    good = {"nll": np.ones(3)}
    assert table.max_diff({"a": {"nll": np.ones(2)}, "b": good}, "a", "b", "nll") == np.inf
    assert table.max_diff({"a": {"nll": np.array([1, np.nan, 1])}, "b": good}, "a", "b", "nll") == np.inf


def test_the_table_says_that_top_20_entropy_is_not_entropy() -> None:
    """Nobody takes prompt_logprobs=20 for an exact route, and nothing is compared with it."""
    outcome = processes.Outcome("prompt-logprobs", 1.0, 1.0, 2.0, 1)
    scores = {"prompt-logprobs": {"nll": np.ones(1), "entropy": np.ones(1)}}
    assert "NOT the entropy" in table.render(table.make_rows([outcome], scores, 1, 1.0, 1.0))
    assert table.base_of(scores) is None
