"""Select the samples of a global batch from a few numbers each. Every rank computes the same result.

The method computes thresholds and quadrants over all samples with finite scores (selection/thresholds.py). Warm-up
draws whole samples with a trained token at random. The draw depends on the seed, the step and their number, so nothing
is scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.selection.hashing import uniform
from qtune_service.selection.plane import QuadrantRule, Thresholds
from qtune_service.selection.thresholds import select, target_count
from qtune_service.selection.token_masks import tokens_left
from qtune_service.training.arguments import QTuningArguments
from qtune_service.training.metrics import Drift, StepRecord, log

NAMES = ("Q1", "Q2", "Q3", "Q4")
NOWHERE = Thresholds(*[float("nan")] * 5)
"""Thresholds of a step without scores."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchSelection:
    """Quadrants and decisions for the N samples of a global batch."""

    quadrants: NDArray[np.int8]  # (N,) 1..4; 0 where a sample was not scored
    is_kept: NDArray[np.bool_]  # (N,)
    record: StepRecord


class Population:
    """Select samples step by step, and track the quadrant of each. rule: a user's quadrants instead of the method's."""

    def __init__(self, arguments: QTuningArguments, rule: QuadrantRule | None) -> None:
        self._arguments, self._rule = arguments, rule
        self.drift = Drift()

    def draw(self, step: int, sizes: NDArray[np.int64]) -> BatchSelection:
        """Draw at random among samples with trained tokens. sizes: trained tokens (N,)."""
        usable = np.flatnonzero(sizes)
        if not len(usable):
            return self._nothing(step, len(sizes), is_warmup=True)
        a = self._arguments
        target = target_count(a.sample_keep_ratio, len(usable))
        drawn = uniform(a.seed, np.full(len(usable), step), np.arange(len(usable)))
        is_kept = np.zeros(len(sizes), np.bool_)
        is_kept[usable[np.argsort(drawn, kind="stable")[:target]]] = True
        record = StepRecord(
            step=step,
            num_samples=len(usable),
            num_rejected=len(sizes) - len(usable),
            target=target,
            kept=target,
            counts=dict.fromkeys(NAMES, 0),
            thresholds=NOWHERE,
            tokens_before=int(sizes.sum()),
            tokens_after=int(sizes[is_kept].sum()),
            is_warmup=True,
        )
        return BatchSelection(np.zeros(len(sizes), np.int8), is_kept, record)

    def choose(
        self,
        step: int,
        means: NDArray[np.float64],
        sizes: NDArray[np.int64],
        num_protected: NDArray[np.int64],
        keys: NDArray[np.float64],
    ) -> BatchSelection:
        """Select by the method.

        means: NLL and entropy (N, 2) in nats. sizes: trained tokens (N,). num_protected: those that stay (N,). keys:
        content keys (N,).
        """
        usable = np.isfinite(means).all(1)
        if not usable.any():
            self._check_scores(step, sizes)
            return self._nothing(step, len(sizes), is_warmup=False)
        a, sizes = self._arguments, sizes[usable]
        found = select(
            means[usable, 0],
            means[usable, 1],
            sample_keep_ratio=a.sample_keep_ratio,
            bisect_max_iter=a.bisect_max_iter,
            rule=self._rule,
        )
        quadrants, is_kept = np.zeros(len(means), np.int8), np.zeros(len(means), np.bool_)
        quadrants[usable], is_kept[usable] = found.labels, found.is_kept
        left = np.where(found.labels == 2, self._tokens_left(sizes, num_protected[usable]), sizes)
        record = StepRecord(
            step=step,
            num_samples=len(sizes),
            num_rejected=len(means) - len(sizes),
            target=found.target,
            kept=found.kept,
            counts=dict(zip(NAMES, found.counts.values(), strict=True)),
            thresholds=found.thresholds,
            tokens_before=int(sizes.sum()),
            tokens_after=int(left[found.is_kept].sum()),
            drift=self.drift.moves(keys[usable], found.labels),
        )
        return BatchSelection(quadrants, is_kept, record)

    def _tokens_left(self, sizes: NDArray[np.int64], num_protected: NDArray[np.int64]) -> NDArray[np.int64]:
        a = self._arguments
        return tokens_left(
            sizes,
            num_protected if a.keep_end_of_turn else None,
            token_keep_ratio=a.token_keep_ratio,
            min_tokens_to_prune=a.min_tokens_to_prune,
            token_strategy=a.token_strategy,
        )

    @staticmethod
    def _check_scores(step: int, sizes: NDArray[np.int64]) -> None:
        """Raise DataError if there are trained tokens but no finite scores."""
        if sizes.any():
            raise DataError(
                f"none of the {len(sizes)} samples of step {step} has finite scores",
                "The model has most likely diverged. Check its loss and gradients before this step.",
            )

    @staticmethod
    def _nothing(step: int, num_samples: int, *, is_warmup: bool) -> BatchSelection:
        """Return the result for a batch without trained tokens."""
        log.warning("[Q-Tuning] step %d has no trained token", step)
        counts = dict.fromkeys(NAMES, 0)
        record = StepRecord(step, 0, num_samples, 0, 0, counts, NOWHERE, 0, 0, is_warmup=is_warmup)
        return BatchSelection(np.zeros(num_samples, np.int8), np.zeros(num_samples, np.bool_), record)
