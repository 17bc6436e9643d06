"""The benchmark of quality trains by every method, measures what it says, and does nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.__main__ import read_results, run_all
from benchmarks.quality.agreement import CHOICES, agreement
from benchmarks.quality.catalogue import task_of
from benchmarks.quality.grids import SECTIONS
from benchmarks.quality.gsm8k import gsm8k
from benchmarks.quality.measures import calibration_error, measure
from benchmarks.quality.report import write_report
from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import KINDS, SYMBOLS, Examples, rewritten, without_carries
from benchmarks.quality.training import Run, weighted_loss

SMALL = RunSpec("addition", width=16, layers=1, rows=8, steps=6, warmup=2, eval_every=3, train_rows=300)
METHODS = ("random", "all-candidates", "q-tuning", "longest", "perplexity-lowest", "entropy-highest", "infobatch")


def texts(examples: Examples) -> list[str]:
    """Rows as they read."""
    return ["".join(SYMBOLS[place] for place in row) for row in examples.ids.tolist()]


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_as_many_rows(method: str, mode: str) -> None:
    """Each step has the rows asked for, or more by ties; all candidates only where it says so. Scoring is counted."""
    run = Run(replace(SMALL, method=method, mode=mode), task_of(SMALL))
    found = run.train()
    last = found["curve"][-1]
    shown = 8 * 2 if (method, mode) == ("all-candidates", "dynamic") else 8
    assert 8 * 6 <= last["trained_rows"] <= 8 * 2 + (shown + 3) * 4
    assert (last["scored_tokens"] > 0) == (method not in {"random", "all-candidates"})
    assert sum(found["kept"].values()) == pytest.approx(1)
    assert [point["step"] for point in found["curve"]] == [3, 6]


def test_rows_are_what_their_kinds_say() -> None:
    """Right rows are right, noise follows the wrong rule, rare rows the exception; clean rows were not trained on."""
    task = task_of(replace(SMALL, task="addition-plain", noise="systematic", train_rows=2000))
    for text, kind in zip(texts(task.train), task.kinds.tolist(), strict=True):
        a, b, total = int(text[:3]), int(text[4:7]), int(text[8:12])
        assert total == (without_carries(a, b) if KINDS[kind] == "noise" else a + b)
        assert KINDS[kind] != "trivial" or max(a, b) < 10
    task = task_of(replace(SMALL, task="rewrite", train_rows=2000))
    for text, kind in zip(texts(task.train), task.kinds.tolist(), strict=True):
        rule, letters, answer = text[0], text[1:7], text[8:14]
        assert (letters[0] == "h") == (KINDS[kind] == "rare")
        if KINDS[kind] in {"normal", "trivial"}:
            assert answer == rewritten(rule, letters)
    assert not {text[:8] for text in texts(task.train)} & {text[:8] for text in texts(task.tests["normal"])}


def test_exact_match_is_what_greedy_decoding_gets_right() -> None:
    """A model that knows all answers but one scores one less than all, and its ECE is its lack of confidence."""
    task = task_of(SMALL)
    examples = task.tests["normal"].take(np.arange(4))
    flawed = examples.ids.clone()
    flawed[0, -2] = (flawed[0, -2] + 1) % 10

    class Knowing(torch.nn.Module):  # type: ignore[misc]
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            following = torch.cat((flawed[: len(ids), 1:], flawed[: len(ids), :1]), 1)
            return 50.0 * torch.nn.functional.one_hot(following, len(SYMBOLS)).float()

    found = measure(Knowing(), examples)
    assert found["exact"] == 0.75
    assert found["token"] == pytest.approx(19 / 20)
    assert found["ece"] == pytest.approx(1 / 20, abs=1e-4)
    half = torch.full((10,), 0.5)
    assert calibration_error(torch.ones(10), half) == pytest.approx(0.5)
    assert calibration_error(torch.tensor([0.0, 1.0] * 5), half) == pytest.approx(0)


def test_weights_are_those_of_rows() -> None:
    """A row of weight 2 counts as if it were there twice; tokens that are masked count nothing."""
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, 3:] = -100
    twice = torch.tensor([0, 1, 1, 2])
    found = weighted_loss(logits, labels, torch.tensor([1.0, 2.0, 1.0]))
    expected = torch.nn.functional.cross_entropy(logits[twice, :-1].flatten(0, 1), labels[twice, 1:].flatten())
    torch.testing.assert_close(found, expected)


def test_runs_are_made_once_and_reported(tmp_path: Path) -> None:
    """A second call makes nothing new; the table has a line a method, and the pictures are there."""
    results, page = tmp_path / "results.jsonl", tmp_path / "quality.md"
    planned = [replace(SECTIONS["main"][place], seed=seed) for place in (0, 1) for seed in (0, 1)]
    specs = [replace(spec, steps=4, warmup=1, rows=4, width=16, train_rows=100) for spec in planned]
    for _ in range(2):
        run_all(iter(specs), results)
    found = read_results(results)
    assert [result["spec"] for result in found] == [spec.to_json() for spec in specs]
    for result, spec in zip(found, planned, strict=True):
        result["spec"] = spec.to_json()
    page.write_text("before\n<!-- main -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    write_report(found, [], page, tmp_path / "images")
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "old" not in lines
    assert len([line for line in lines if line.startswith("| addition |")]) == 2
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"quality-steps.png", "quality-seconds.png"}


def test_agreement_is_that_of_gradients() -> None:
    """At each step asked for, each method has its cosines, and what it keeps adds up."""
    rows = agreement(replace(SMALL, steps=4), (1, 3))
    assert [row["step"] for row in rows] == [1] * len(CHOICES) + [3] * len(CHOICES)
    assert all(-1 <= row["cosine"]["normal"] <= 1 and sum(row["kept"].values()) == pytest.approx(1) for row in rows)
    assert {row["method"] for row in rows} > {"random", "q-tuning"}


def test_gsm8k_swaps_answers_and_masks_questions(shared_dir: Path) -> None:
    """The planted share of answers belongs to other questions, and only answers are trained on."""
    task = gsm8k(RunSpec("gsm8k", noise="swapped", noise_rate=0.25), shared_dir)
    assert np.mean(task.kinds == KINDS.index("noise")) == pytest.approx(0.25, abs=0.02)
    trained = task.train.labels != -100
    assert not bool(trained[:, 0].any())
    assert not bool((trained & ~task.train.real).any())
    assert bool(trained.any(1).all())
