"""Ways to choose rows with a model as it is: Q-Tuning by the users' pruner, the others by selection/strategies.py.

Each takes some rows and says which stay, with what labels and weights. Applied to the candidates of each step it is a
dynamic method, applied once to all rows a static one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import IGNORED, Examples
from qtune_service.samples import sample_means
from qtune_service.selection.strategies import Weighing, loss_sum, mean_of, priority_of
from qtune_service.selection.thresholds import select
from qtune_service.training import QTuningPruner
from qtune_service.training.batch_layout import read_batch
from qtune_service.training.token_scores import TokenScorer


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Rows that stay."""

    places: NDArray[np.int64]  # (K,)
    labels: Any  # (K, T) tensor
    weights: Any  # (K,) tensor: by how much a row's loss counts


Chooser = Callable[[Any, Examples], Chosen]


def chooser(spec: RunSpec) -> Chooser | None:
    """Return how a run chooses, or None where it takes rows as they come."""
    if spec.method == "all-candidates" or (spec.method, spec.mode) == ("random", "dynamic"):
        return None
    return _q_tuning(spec) if spec.method == "q-tuning" else _by_priority(spec)


def as_batch(rows: Examples) -> dict[str, Any]:
    """Return rows as trainers pass them."""
    return {"input_ids": rows.ids, "labels": rows.labels, "attention_mask": rows.real.long()}


def _q_tuning(spec: RunSpec) -> Chooser:
    is_dynamic = spec.mode == "dynamic"
    pruner = QTuningPruner(
        spec.keep,
        spec.token_ratio,
        bisect_max_iter=10 if is_dynamic else None,
        min_tokens_to_prune=spec.min_tokens,
        token_strategy=spec.token_strategy,
        warmup_steps=spec.warmup if is_dynamic else 0,
        seed=spec.seed,
    )

    def choose(model: Any, rows: Examples) -> Chosen:
        choice = pruner.prune(model, as_batch(rows)).choice
        is_trained = torch.zeros_like(rows.real)
        is_trained[rows.real] = torch.from_numpy(choice.rows.loss_mask != 0)
        kept = torch.from_numpy(choice.kept)
        return Chosen(choice.kept, rows.ids.masked_fill(~is_trained, IGNORED)[kept], torch.ones(len(kept)))

    return choose


def _by_priority(spec: RunSpec) -> Chooser:
    strategy, _, order = spec.method.partition("-")
    scorer, calls = TokenScorer(), 0

    def choose(model: Any, rows: Examples) -> Chosen:
        nonlocal calls
        calls += 1
        nll, entropy, sizes = _means(scorer, model, rows) if strategy != "random" else _unscored(rows)
        seed = 100_003 * spec.seed + calls
        priority = priority_of(strategy, order or "highest", seed, lambda: mean_of(loss_sum(nll), len(nll)))
        assert priority is not None
        keys = priority.keys(nll, entropy, sizes, 0)
        is_kept = select(nll, entropy, sample_keep_ratio=spec.keep, priority=keys).is_kept
        sides = priority.sides(nll, is_kept)
        weights = np.ones(len(nll)) if sides is None else Weighing(priority.mean_loss, sides).of(nll)
        places = np.flatnonzero(is_kept)
        return Chosen(places, rows.labels[torch.from_numpy(places)], torch.from_numpy(weights[places]).float())

    return choose


def _means(scorer: TokenScorer, model: Any, rows: Examples) -> tuple[Any, Any, Any]:
    """Mean NLL, mean entropy and trained tokens of each row."""
    read, layout = read_batch(as_batch(rows))
    scores = scorer.score(model, read, layout.device)
    bounds = np.concatenate(([0], np.cumsum(read.num_trained)))
    return sample_means(scores[:, 0], bounds), sample_means(scores[:, 1], bounds), read.num_trained


def _unscored(rows: Examples) -> tuple[Any, Any, Any]:
    """Return placeholders for scores: a random draw needs none."""
    nothing = np.zeros(len(rows))
    return nothing, nothing, nothing.astype(np.int64)
