"""A report's contents from made-up scores, pruned by the real method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.metrics import perplexity
from qtune_service.core.plane import Quadrant
from qtune_service.core.thresholds import select
from qtune_service.report.contents import (
    Counts,
    ExampleSample,
    ExampleToken,
    PlaneSample,
    QuadrantName,
    ReportData,
    TokenTotals,
)
from qtune_service.report.distributions import describe
from qtune_service.report.examples import typical_samples
from qtune_service.report.plane import MAX_POINTS
from qtune_service.report.sample import pick_points

Scores = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]  # mean_nll, mean_entropy, num_tokens: (N,)
WORDS = (
    "The", " answer", " is", " 4", "2", ",", " because", " each", " of", " the", " six", " boxes", " holds", " seven",
    " pens", ".", "\n", "\n\n", "\t", "So", " 6", " +", " 7", " =", " **", "42", "**", " naïve", " 你", "好", " 🙂",
    " مر", "حبا",
)  # fmt: skip
PROMPT = "<|user|>\nSix boxes hold seven pens each. How many pens are there?\n<|assistant|>\n"
CATEGORIES = ("arithmetic", "geometry", "algebra", "word problems")


def made_up_scores(num_samples: int = 3_000, correlation: float = 0.75, seed: int = 7) -> Scores:
    """Log-normal perplexity and entropy with a given correlation, and lengths of 5 to some hundreds of tokens."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((2, num_samples))
    other = correlation * z[0] + np.sqrt(1 - correlation**2) * z[1]
    lengths = np.clip(np.exp(rng.normal(4.2, 0.7, num_samples)), 5, 900).astype(np.int64)
    return np.exp(0.35 + 0.55 * z[0]), np.exp(0.1 + 0.45 * other), lengths


def made_up_report(scores: Scores | None = None, keep_ratio: float = 0.5, **changes: Any) -> ReportData:
    """A report over `scores`. `changes` replace fields of the result."""
    mean_nll, mean_entropy, lengths = scores or made_up_scores()
    outcome = select(mean_nll, mean_entropy, sample_keep_ratio=keep_ratio)
    labels, picks = outcome.labels, pick_points(len(mean_nll), MAX_POINTS)
    kept = np.isin(labels, (2, 4))
    after = np.where(labels == 2, np.ceil(0.7 * lengths), lengths).astype(np.int64)
    rejected = max(len(mean_nll) // 100, 1)
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
        counts=_counts(outcome.counts, rejected),
        tokens=TokenTotals(int(lengths.sum()), int(lengths[kept].sum()), int(after[kept].sum())),
        plane=PlaneSample(
            perplexity(mean_nll[picks]), mean_entropy[picks], labels[picks],
            tuple(f"gsm8k_train.jsonl:{i + 1}" for i in picks), len(mean_nll),
        ),
        distributions=describe(mean_nll, mean_entropy, lengths, labels),
        rejected_reasons={"no assistant turn": rejected},
        by_source={"data/gsm8k_train.jsonl": _counts(outcome.counts, rejected)},
        by_category=_by_category(labels),
        seconds={"plan": 0.4, "score": 412.0, "thresholds": 0.1, "prune": 6.3, "report": 2.2},
        examples=tuple(
            _example(f"gsm8k_train.jsonl:{i + 1}", i, f"Q{label}", mean_nll, mean_entropy)
            for label, chosen in typical_samples(mean_nll, mean_entropy, labels).items() for i in chosen
        ),
    )  # fmt: skip
    return replace(data, **changes)


def example(text_tokens: tuple[str, ...], quadrant: QuadrantName = "Q2", sample_id: str = "s:1") -> ExampleSample:
    """A sample; of Q2, every third response token is removed."""
    tokens = tuple(
        ExampleToken(text, "removed" if quadrant == "Q2" and i % 3 == 2 else "kept", nll=0.5 + i % 7, entropy=1.25)
        for i, text in enumerate(text_tokens)
    )
    return ExampleSample(sample_id, "s", 1, quadrant, 12.5, 1.5, (ExampleToken(PROMPT, "prompt"), *tokens))


def _example(
    sample_id: str, index: int, label: str, mean_nll: NDArray[np.float64], mean_entropy: NDArray[np.float64]
) -> ExampleSample:
    rng = np.random.default_rng(index)
    texts = tuple(WORDS[i] for i in rng.integers(0, len(WORDS), 70))
    made = example(texts, QUADRANT_NAMES[label], sample_id)
    return replace(
        made, source="data/gsm8k_train.jsonl", line=index + 1,
        perplexity=float(perplexity(mean_nll[index])), entropy=float(mean_entropy[index]),
    )  # fmt: skip


QUADRANT_NAMES: Mapping[str, QuadrantName] = {"Q1": "Q1", "Q2": "Q2", "Q3": "Q3", "Q4": "Q4"}


def _counts(labels: Mapping[Quadrant, int], rejected: int) -> Counts:
    return Counts(rejected, *(labels[Quadrant(q)] for q in (1, 2, 3, 4)))


def _by_category(labels: NDArray[np.int8]) -> dict[str, Counts]:
    groups = np.arange(len(labels)) % len(CATEGORIES)
    return {
        name: Counts(0, *(int(np.sum(labels[groups == i] == q)) for q in (1, 2, 3, 4)))
        for i, name in enumerate(CATEGORIES)
    }
