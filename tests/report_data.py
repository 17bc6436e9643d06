"""A report's contents from made-up scores, pruned by the real method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.report.data import (
    Counts,
    ExampleSample,
    QuadrantName,
    ReportData,
    TokenTotals,
    TokenView,
)
from qtune_service.samples import count_of_share, perplexity
from qtune_service.selection.curve import CurveCounts
from qtune_service.selection.distributions import EvenSample, describe, even_sample
from qtune_service.selection.examples import ExampleKind, borderline_samples, typical_samples
from qtune_service.selection.thresholds import select, smallest_scaled_alphas

Scores = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]  # mean_nll, mean_entropy, num_tokens: (N,)
WORDS = (
    "The", " answer", " is", " 4", "2", ",", " because", " each", " of", " the", " six", " boxes", " holds", " seven",
    " pens", ".", "\n", "\n\n", "\t", "So", " 6", " +", " 7", " =", " **", "42", "**", " naïve", " 你", "好", " 🙂",
    " مر", "حبا",
)  # fmt: skip
PROMPT = "<|user|>\nSix boxes hold seven pens each. How many pens are there?\n<|assistant|>\n"
CURVE_RATIOS = [percent / 200 for percent in range(1, 201)]
CATEGORIES = ("arithmetic", "geometry", "algebra", "word problems")


def made_up_scores(num_samples: int = 3_000, correlation: float = 0.75, seed: int = 7) -> Scores:
    """Log-normal perplexity and entropy with a given correlation, and lengths of 5 to some hundreds of tokens."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((2, num_samples))
    other = correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]
    lengths = np.clip(np.exp(rng.normal(4.2, 0.7, num_samples)), 5, 900).astype(np.int64)
    return np.exp(0.35 + 0.55 * z[0]), np.exp(0.1 + 0.45 * other), lengths


def made_up_report(scores: Scores | None = None, keep_ratio: float = 0.5, **changes: Any) -> ReportData:
    """Return a report over `scores`. `changes` replace fields of the result."""
    mean_nll, mean_entropy, lengths = scores or made_up_scores()
    outcome = select(mean_nll, mean_entropy, sample_keep_ratio=keep_ratio)
    labels, kept = outcome.labels, outcome.is_kept
    as_q2 = np.ceil(0.7 * lengths).astype(np.int64)
    left = np.where(labels == 2, as_q2, lengths)
    sample = even_sample(outcome.ranked, labels=labels, kept=kept, num_tokens=lengths)
    alphas = smallest_scaled_alphas(outcome.entry, [count_of_share(ratio, len(lengths)) for ratio in CURVE_RATIOS])
    curve = CurveCounts.of(outcome.ranked, outcome.entry, lengths, as_q2, alphas)
    rejected = max(len(mean_nll) // 100, 1)
    reasons = {"no_assistant_turn": rejected - rejected // 3, "too_long": rejected // 3}
    tokens = np.stack([lengths, np.where(kept, left, 0)])
    data = ReportData(
        title="gsm8k_train.jsonl",
        spec={
            "input": {"paths": ["data/gsm8k_train.jsonl"], "category_field": "topic"},
            "model": {"name": "Qwen/Qwen2.5-0.5B-Instruct", "revision": None},
            "prune": {"sample_keep_ratio": keep_ratio, "token_keep_ratio": 0.7, "min_tokens_to_prune": 1},
        },
        engine={"engine": "vllm 0.32.0", "device": "cpu", "dtype": "float32"},
        created_at="2026-01-31T12:00:00+00:00",
        thresholds=outcome.thresholds,
        target=outcome.target,
        disjoint_capacity=outcome.disjoint_capacity,
        counts=_counts(labels, kept, tokens, reasons),
        tokens=TokenTotals(int(lengths.sum()), int(lengths[kept].sum()), int(tokens[1].sum())),
        sample=sample,
        point_ids=tuple(f"gsm8k_train.jsonl:{i + 1}" for i in sample.points().index),
        distributions=describe(mean_nll, mean_entropy, lengths, labels),
        by_source={"data/gsm8k_train.jsonl": _counts(labels, kept, tokens, reasons)},
        by_category=_by_category(labels, kept, tokens),
        seconds={"plan": 0.4, "score": 412.0, "thresholds": 0.1, "prune": 6.3, "report": 2.2},
        examples=tuple(_examples(sample, outcome.thresholds.alpha)),
        curve=curve.points(CURVE_RATIOS, len(lengths)),
        output="out/gsm8k",
    )
    return replace(data, **changes)


def nothing_scored() -> ReportData:
    """Return a report of a job that rejected all of its five records."""
    none = np.empty(0)
    places = none.astype(np.int64)
    labels = none.astype(np.int8)
    counts = Counts(rejected=5, reasons={"bad_json": 5})
    return made_up_report(
        counts=counts, tokens=TokenTotals(0, 0, 0), thresholds=None, target=0, disjoint_capacity=0, curve=(),
        sample=EvenSample(places, none, none, none, none, none.astype(np.int32), labels, none.astype(np.bool_), 0),
        point_ids=(), by_source={"data/gsm8k_train.jsonl": counts}, by_category={}, seconds={},
        examples=(), distributions=describe(none, none, places, labels),
    )  # fmt: skip


def example(text_tokens: tuple[str, ...], quadrant: QuadrantName = "Q2", sample_id: str = "s:1") -> ExampleSample:
    """Return a sample. Every third response token of a Q2 sample is removed."""
    tokens = tuple(
        TokenView(
            text,
            "removed" if quadrant == "Q2" and i % 3 == 2 else "kept",
            nll=0.5 + i % 7,
            entropy=1.25,
            score=1.5 + i % 5,
        )
        for i, text in enumerate(text_tokens)
    )
    return ExampleSample(sample_id, "s", 1, quadrant, 12.5, 1.5, (TokenView(PROMPT, "prompt"), *tokens))


def _examples(sample: EvenSample, alpha: float) -> Iterator[ExampleSample]:
    kinds: tuple[tuple[ExampleKind, dict[int, NDArray[np.int64]]], ...] = (
        ("typical", typical_samples(sample, 3)),
        ("borderline", borderline_samples(sample, alpha, 3)),
    )
    for why, chosen in kinds:
        for label, rows in chosen.items():
            for row in rows.tolist():
                yield _example(sample, row, QUADRANT_NAMES[f"Q{label}"], why)


def _example(sample: EvenSample, row: int, label: QuadrantName, why: ExampleKind) -> ExampleSample:
    index = int(sample.index[row])
    rng = np.random.default_rng(index)
    made = example(tuple(WORDS[i] for i in rng.integers(0, len(WORDS), 70)), label, f"gsm8k_train.jsonl:{index + 1}")
    return replace(
        made, source="data/gsm8k_train.jsonl", line=index + 1, kept=bool(sample.kept[row]), why=why,
        perplexity=float(perplexity(sample.mean_nll[row])), entropy=float(sample.mean_entropy[row]),
        error_rank=float(sample.error_rank[row]), entropy_rank=float(sample.entropy_rank[row]),
    )  # fmt: skip


QUADRANT_NAMES: Mapping[str, QuadrantName] = {"Q1": "Q1", "Q2": "Q2", "Q3": "Q3", "Q4": "Q4"}


def _counts(
    labels: NDArray[np.int8], kept: NDArray[np.bool_], tokens: NDArray[np.int64], reasons: Mapping[str, int]
) -> Counts:
    quadrants = [int(np.sum(labels == q)) for q in (1, 2, 3, 4)]
    return Counts.of(reasons, [*quadrants, int(kept.sum()), *tokens.sum(axis=1).tolist()])


def _by_category(labels: NDArray[np.int8], kept: NDArray[np.bool_], tokens: NDArray[np.int64]) -> dict[str, Counts]:
    groups = np.arange(len(labels)) % len(CATEGORIES)
    return {
        name: _counts(labels[groups == i], kept[groups == i], tokens[:, groups == i], {})
        for i, name in enumerate(CATEGORIES)
    }
