"""Q-Tuning of every step: score the global batch with the current model, select samples, and mask tokens.

    rows of this rank -> token scores (token_scores.py) -> means -> means of all ranks (distributed.py)
      -> thresholds and quadrants of the global batch (batch_selection.py) -> token masks of Q2
      (selection/token_masks.py) -> kept rows, balanced over ranks and micro-batches (distributed.py) -> batches in the
      original layout

The population is the global batch: all micro-batches of a step on all ranks. The rules and their code are those of
jobs. Ranks exchange four numbers per sample (mean NLL, mean entropy, trained tokens, and a content key) and, for equal
numbers of rows, the kept rows themselves. Warm-up steps keep random whole rows and score nothing.

Source: Wang et al., Winning the Pruning Gamble, arXiv:2509.23873.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qtune_service.errors import DataError
from qtune_service.samples import sample_means
from qtune_service.selection.plane import QuadrantRule
from qtune_service.selection.token_masks import prune_token_masks
from qtune_service.training.arguments import QTuningArguments
from qtune_service.training.batch_layout import Batch, Layout, Rows, read_batch
from qtune_service.training.batch_selection import Population
from qtune_service.training.distributed import Ranks, balanced, partition_balanced
from qtune_service.training.metrics import RecordSink, StepRecord, log, log_step
from qtune_service.training.step import Choice, PrunedStep
from qtune_service.training.token_scores import BATCH_TOKENS, LOGITS_BYTES, Forward, TokenScorer, call_for_logits

DEFAULTS = QTuningArguments()


class QTuningPruner:
    """Prune batches with the model that is being trained.

    sample_keep_ratio: a ratio, or a QTuningArguments in place of it and of the method's other arguments.
    group: the data-parallel ranks (by default all). rule: a user's quadrants in place of the method's. balance:
    rebalance kept rows over the ranks; without it each rank trains on its own kept rows. records: further sinks of each
    record, on the first rank. is_quiet: log nothing, as where several groups prune the same rows. forward, batch_tokens
    and logits_bytes are those of TokenScorer. others: further fields of QTuningArguments.
    """

    def __init__(
        self,
        sample_keep_ratio: QTuningArguments | float = DEFAULTS.sample_keep_ratio,
        token_keep_ratio: float = DEFAULTS.token_keep_ratio,
        neighbor_lambda: float = DEFAULTS.neighbor_lambda,
        bisect_max_iter: int | None = DEFAULTS.bisect_max_iter,
        group: Any = None,
        *,
        rule: QuadrantRule | None = None,
        balance: bool = True,
        records: Sequence[RecordSink] = (),
        is_quiet: bool = False,
        forward: Forward = call_for_logits,
        batch_tokens: int = BATCH_TOKENS,
        logits_bytes: int = LOGITS_BYTES,
        **others: Any,
    ) -> None:
        given = {
            "token_keep_ratio": token_keep_ratio,
            "neighbor_lambda": neighbor_lambda,
            "bisect_max_iter": bisect_max_iter,
            **others,
        }
        if not isinstance(sample_keep_ratio, QTuningArguments):
            self.arguments = QTuningArguments(sample_keep_ratio, **given)
        elif all(value == getattr(DEFAULTS, name, None) for name, value in given.items()):
            self.arguments = sample_keep_ratio
        else:
            raise TypeError("QTuningPruner takes either a QTuningArguments or its fields, not both")
        self.step = 0
        """Number of the next step. Set it when training resumes, or load the pruner's state."""
        self._group, self._balance, self._is_quiet = group, balance, is_quiet
        self._records = tuple(records)
        self._scorer = TokenScorer(forward, batch_tokens=batch_tokens, logits_bytes=logits_bytes)
        self._is_first_score = not is_quiet
        self._population = Population(self.arguments, rule)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run: the next step and the last quadrant of each seen sample."""
        keys, quadrants = self._population.drift.state()
        return {"step": self.step, "keys": torch.from_numpy(keys), "quadrants": torch.from_numpy(quadrants)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self.step = state["step"]
        self._population.drift.restore(state["keys"].numpy(), state["quadrants"].numpy())

    # --- batches

    def prune(self, model: Any, batch: Batch) -> PrunedStep:
        """Prune a padded, packed or ragged batch (batch_layout.py). All ranks of the group call it together.

        Raises DataError for an invalid batch, and if no score is finite.
        """
        return self.prune_step(model, [batch])

    def prune_step(self, model: Any, batches: Sequence[Batch]) -> PrunedStep:
        """Prune all micro-batches of a step as one population. Return the same number, each with its share of rows."""
        began = time.perf_counter()
        read = [read_batch(batch) for batch in batches]
        rows, layouts = Rows.concatenate([part for part, _ in read]), [layout for _, layout in read]
        device = layouts[0].device
        ranks = Ranks.of(self._group, device)
        scores = None if self.is_warming_up else self._scorer.score(model, rows, device)
        choice = self._choose(rows, scores, ranks, began)
        if scores is not None and scores.size and ranks.rank == 0:
            self._warn_once(rows, scores[:, 0])
        return self._rebuild(choice, layouts, ranks)

    def _warn_once(self, rows: Rows, nll: NDArray[np.float32]) -> None:
        """Warn at the first scored step if the model predicts no better than token frequencies."""
        if not self._is_first_score:
            return
        self._is_first_score = False
        found, by_frequency = float(nll.mean()), _entropy_of(rows.input_ids[rows.loss_mask != 0])
        if found > by_frequency:
            message = "[Q-Tuning] the model's mean NLL is %.2f nats, the entropy of the token frequencies is %.2f: %s"
            hint = "Its choice can teach less than random rows. Set warmup_steps (docs/reference/quality.md, Recipe)."
            log.warning(message, found, by_frequency, hint)

    @property
    def is_warming_up(self) -> bool:
        """Return whether the next step is a warm-up step."""
        return self.step < self.arguments.warmup_steps

    def _rebuild(self, choice: Choice, layouts: list[Layout], ranks: Ranks) -> PrunedStep:
        mine = choice.rows.take(choice.kept)
        if self._balance:
            mine = balanced(mine, ranks)
        parts = partition_balanced(mine.lengths, len(layouts))
        filler = _filler(choice.rows)
        batches = [
            layout.write(mine.take(part) if len(part) else filler) for layout, part in zip(layouts, parts, strict=True)
        ]
        return PrunedStep(batches, choice, choice.record.tokens_after, ranks.size)

    # --- scores

    def prune_scores(
        self,
        nll: Sequence[ArrayLike],
        entropy: Sequence[ArrayLike],
        loss_masks: Sequence[ArrayLike],
        *,
        input_ids: Sequence[ArrayLike] | None = None,
        device: torch.device | None = None,
    ) -> Choice:
        """Select by existing scores in nats; in warm-up at random. All ranks of the group call it together.

        loss_masks: (T_i,) per sample; position 0 is never trained. nll and entropy: per sample either the values of its
        trained tokens in order, or one per position (T_i,). input_ids: (T_i,) per sample, to find stop tokens inside of
        spans. device: one that the group can send from.
        """
        began = time.perf_counter()
        masks = [np.asarray(mask) for mask in loss_masks]
        lengths = np.array([len(mask) for mask in masks], np.int64)
        flat = np.concatenate([np.empty(0, np.int8), *masks])
        unknown = np.full(len(flat), -1, np.int64)  # 0 is the stop token of some models
        ids = unknown if input_ids is None else _joined(input_ids, lengths)
        rows = Rows.of(ids, flat, lengths)
        columns = [_trained_values(values, rows, name) for name, values in (("nll", nll), ("entropy", entropy))]
        ranks = Ranks.of(self._group, device or torch.device("cpu"))
        return self._choose(rows, np.stack(columns, 1), ranks, began)

    # --- selection

    def _choose(self, rows: Rows, scores: NDArray[np.floating[Any]] | None, ranks: Ranks, began: float) -> Choice:
        """Select by scores (M, 2) of all trained tokens, which warm-up ignores."""
        bounds = np.concatenate(([0], np.cumsum(rows.num_trained)))
        if scores is None or self.is_warming_up:
            means, nll = np.full((len(rows), 2), np.nan), np.zeros(bounds[-1])
            whole, here = ranks.pool(rows.num_trained)
            verdict = self._population.draw(self.step, whole)
        else:
            means, nll = np.stack([sample_means(column, bounds) for column in scores.T], 1), scores[:, 0]
            num_protected = rows.sums(rows.protected(self.arguments.stop_token_ids))
            whole, here = ranks.pool(np.column_stack((means, rows.num_trained, num_protected, _keys(rows))))
            counts = whole[:, 2:4].astype(np.int64)
            verdict = self._population.choose(self.step, whole[:, :2], counts[:, 0], counts[:, 1], whole[:, 4])
        quadrants, is_kept = verdict.quadrants[here], verdict.is_kept[here]
        masks = self._masks(rows, nll, np.arange(here.start, here.stop), quadrants, is_kept)
        record = replace(verdict.record, seconds=time.perf_counter() - began)
        self._report(record, ranks)
        self.step += 1
        return Choice(rows.with_mask(masks), is_kept, quadrants, means[:, 0], means[:, 1], record)

    def _report(self, record: StepRecord, ranks: Ranks) -> None:
        if ranks.rank == 0 and not self._is_quiet:
            log_step(record, self.arguments.warmup_steps)
            for tell in self._records:
                tell(record)

    def _masks(
        self,
        rows: Rows,
        nll: NDArray[np.floating[Any]],
        indices: NDArray[np.int64],
        quadrants: NDArray[np.int8],
        is_kept: NDArray[np.bool_],
    ) -> NDArray[np.int8]:
        """Return the final masks (L,) of this rank's rows. indices: (S,) in the global batch."""
        a, prunable = self.arguments, (quadrants == 2) & is_kept
        masks = prune_token_masks(
            rows.loss_mask,
            rows.offsets,
            np.where(np.repeat(prunable, rows.num_trained), nll, 0.0),
            prunable,
            token_keep_ratio=a.token_keep_ratio,
            neighbor_lambda=a.neighbor_lambda,
            min_tokens_to_prune=a.min_tokens_to_prune,
            token_strategy=a.token_strategy,
            seed=a.seed + self.step,
            row_index=indices,
            protected=rows.protected(a.stop_token_ids) if a.keep_end_of_turn else None,
        )
        return masks * np.repeat(is_kept, rows.lengths).astype(np.int8)


def _joined(input_ids: Sequence[ArrayLike], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens of all samples, (L,). Raises DataError unless they have the lengths (S,)."""
    arrays = [np.asarray(ids, np.int64) for ids in input_ids]
    if [len(array) for array in arrays] != lengths.tolist():
        raise DataError("input_ids and loss_masks have different lengths", "Pass one token for each entry of a mask.")
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _keys(rows: Rows) -> NDArray[np.float64]:
    """Return the content key of each row, (S,): a 52-bit hash, which float64 holds exactly."""
    parts = np.split(rows.input_ids, rows.offsets[1:-1]) if len(rows) else []
    digests = [hashlib.blake2b(part.tobytes(), digest_size=8).digest() for part in parts]
    numbers: NDArray[np.uint64] = np.frombuffer(b"".join(digests), "<u8") >> np.uint64(12)
    return numbers.astype(np.float64)


def _entropy_of(tokens: NDArray[np.int64]) -> float:
    """Return the entropy in nats of the frequencies of tokens (n,), n >= 1, with the Miller-Madow correction."""
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / len(tokens)
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * len(tokens)))


def _filler(rows: Rows) -> Rows:
    """Return a row without trained tokens for an otherwise empty batch. Its loss and gradients are 0."""
    ids = rows.input_ids[:2] if len(rows.input_ids) >= 2 else np.zeros(2, np.int64)
    return Rows.of(ids, np.zeros(2, np.int8), np.array([2], np.int64))


def _trained_values(values: Sequence[ArrayLike], rows: Rows, name: str) -> NDArray[np.float64]:
    """Return the values of trained tokens, (M,)."""
    arrays = [np.asarray(value, np.float64) for value in values]
    sizes = np.array([len(array) for array in arrays], np.int64)
    flat = np.concatenate([np.empty(0), *arrays])
    if np.array_equal(sizes, rows.num_trained):
        return np.asarray(flat)
    if np.array_equal(sizes, rows.lengths):
        return np.asarray(flat[rows.loss_mask != 0])
    raise DataError(
        f"{name} has {sizes.tolist()[:5]}... values for samples with {rows.num_trained.tolist()[:5]}... trained tokens",
        "Pass one value for each trained token beyond position 0, or one for each position.",
    )
