"""Q-Tuning of every step: score the global batch with the model as it is now, keep what teaches, mask what does not.

    rows of this rank -> token scores (scores.py) -> means -> all ranks' means (collective.py)
      -> thresholds and quadrants of the global batch (core/thresholds.py) -> token masks of Q2 (core/tokens.py)
      -> kept rows, dealt out over ranks and micro-batches (collective.py) -> batches in the layout that came in

The population is the global batch: all micro-batches of a step on all ranks. The rules are those of jobs, by the same
code. Ranks exchange four numbers a sample (mean NLL, mean entropy, trained tokens, and one that stands for the sample),
and, to have as many rows each, the kept rows themselves.

Source: Wang et al., Winning the Pruning Gamble, arXiv:2509.23873.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qtune_service.core.hashing import uniform
from qtune_service.core.metrics import sample_means
from qtune_service.core.plane import QuadrantRule, Thresholds
from qtune_service.core.thresholds import select
from qtune_service.core.tokens import prune_token_masks, tokens_left
from qtune_service.errors import DataError
from qtune_service.training.arguments import QTuningArguments
from qtune_service.training.collective import Ranks, balanced, deal
from qtune_service.training.loss import next_token_loss
from qtune_service.training.records import Drift, RecordSink, StepRecord, log, log_step
from qtune_service.training.rows import Batch, Layout, Rows, read_batch
from qtune_service.training.scores import BATCH_TOKENS, LOGITS_BYTES, Forward, TokenScorer, call_for_logits

NAMES = ("Q1", "Q2", "Q3", "Q4")
NOWHERE = Thresholds(float("nan"), 0.0, float("inf"), -float("inf"), float("inf"))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What became of the S rows of this rank, and of the global batch."""

    rows: Rows
    """As they came in, with the masks that are left: all 0 where a row was dropped."""
    is_kept: NDArray[np.bool_]  # (S,)
    quadrants: NDArray[np.int8]  # (S,) 1..4; 0 where a row could not be scored
    mean_nll: NDArray[np.float64]  # (S,) nats
    mean_entropy: NDArray[np.float64]  # (S,) nats
    record: StepRecord

    @property
    def kept(self) -> NDArray[np.int64]:
        """Places of the rows that are kept."""
        return np.flatnonzero(self.is_kept)

    @property
    def thresholds(self) -> Thresholds:
        """Of the global batch."""
        return self.record.thresholds

    @property
    def loss_masks(self) -> list[NDArray[np.int8]]:
        """The final mask of each row, (T_i,)."""
        return np.split(self.rows.loss_mask, self.rows.offsets[1:-1])


@dataclass(frozen=True, slots=True, eq=False)
class PrunedStep:
    """What to train on in a step."""

    batches: list[dict[str, Any]]
    """As many as came in, with the kept rows of all of them, which may come from other ranks."""
    choice: Choice
    num_tokens: int
    """Tokens in the loss of the whole step, over all ranks and batches."""
    num_ranks: int

    @property
    def record(self) -> StepRecord:
        """Thresholds, counts and times of the global batch."""
        return self.choice.record

    @property
    def batch(self) -> dict[str, Any]:
        """The only batch."""
        (only,) = self.batches
        return only

    def loss(self, logits: torch.Tensor, batch: Batch | None = None) -> torch.Tensor:
        """The part of the step's loss that lies in a batch, by default the only one: logits (B, T, V) -> ()."""
        labels = (self.batch if batch is None else batch)["labels"]
        return next_token_loss(logits, labels, self.num_tokens, num_ranks=self.num_ranks)


class QTuningPruner:
    """Prunes batches with the model that is being trained.

    group: the data-parallel ranks (by default all). rule: a user's quadrants in place of the method's. balance: deal
    kept rows out over the ranks; without it each trains on what it has kept of its own. records: what else is told
    each record, on the first rank. is_quiet: not even there, as where several groups prune the same rows. Others are
    those of QTuningArguments and of TokenScorer.
    """

    def __init__(
        self,
        sample_keep_ratio: float = 0.5,
        token_keep_ratio: float = 0.7,
        neighbor_lambda: float = 0.5,
        bisect_max_iter: int | None = 10,
        group: Any = None,
        *,
        min_tokens_to_prune: int = 1,
        token_strategy: str = "neighbor",
        warmup_steps: int = 0,
        seed: int = 0,
        rule: QuadrantRule | None = None,
        balance: bool = True,
        records: Sequence[RecordSink] = (),
        is_quiet: bool = False,
        forward: Forward = call_for_logits,
        batch_tokens: int = BATCH_TOKENS,
        logits_bytes: int = LOGITS_BYTES,
    ) -> None:
        self.arguments = QTuningArguments(
            sample_keep_ratio=sample_keep_ratio,
            token_keep_ratio=token_keep_ratio,
            neighbor_lambda=neighbor_lambda,
            bisect_max_iter=bisect_max_iter,
            min_tokens_to_prune=min_tokens_to_prune,
            token_strategy=token_strategy,
            warmup_steps=warmup_steps,
            seed=seed,
        )
        self.step = 0
        """The next step's number. Set it when training resumes."""
        self._group, self._rule, self._balance, self._is_quiet = group, rule, balance, is_quiet
        self._records = tuple(records)
        self._scorer = TokenScorer(forward, batch_tokens=batch_tokens, logits_bytes=logits_bytes)
        self._drift = Drift()

    # --- batches

    def prune(self, model: Any, batch: Batch) -> PrunedStep:
        """Prune a batch: padded, packed or ragged, see rows.py. All ranks of the group call it together.

        Raises DataError for a batch that cannot be read, and where no score at all is finite.
        """
        return self.prune_step(model, [batch])

    def prune_step(self, model: Any, batches: Sequence[Batch]) -> PrunedStep:
        """Prune all micro-batches of a step as one population. As many come back, each with its share of the rows."""
        began = time.perf_counter()
        read = [read_batch(batch) for batch in batches]
        rows, layout = Rows.joined([part for part, _ in read]), read[0][1]
        scores = self._scorer.score(model, rows, layout.device)
        return self._step(rows, scores, [each for _, each in read], began)

    def _step(self, rows: Rows, scores: NDArray[np.float32], layouts: list[Layout], began: float) -> PrunedStep:
        ranks = Ranks.of(self._group, layouts[0].device)
        choice = self._choose(rows, scores, ranks, began)
        mine = choice.rows.take(choice.kept)
        if self._balance:
            mine = balanced(mine, ranks)
        hands = deal(mine.lengths, len(layouts))
        filler = _filler(rows)
        batches = [
            layout.write(mine.take(hand) if len(hand) else filler) for layout, hand in zip(layouts, hands, strict=True)
        ]
        return PrunedStep(batches, choice, choice.record.tokens_after, ranks.size)

    # --- scores

    def prune_scores(
        self,
        nll: Sequence[ArrayLike],
        entropy: Sequence[ArrayLike],
        loss_masks: Sequence[ArrayLike],
        *,
        device: torch.device | None = None,
    ) -> Choice:
        """Choose by scores that are there already, in nats. All ranks of the group call it together.

        loss_masks: one (T_i,) a sample; position 0 is never trained on. nll and entropy: of each sample either the
        values of its trained tokens, in order, or one a position (T_i,). device: one that the group can send from.
        """
        began = time.perf_counter()
        masks = [np.asarray(mask) for mask in loss_masks]
        lengths = np.array([len(mask) for mask in masks], np.int64)
        flat = np.concatenate([np.empty(0, np.int8), *masks])
        rows = Rows.of(np.zeros(len(flat), np.int64), flat, lengths)
        columns = [_trained_values(values, rows, name) for name, values in (("nll", nll), ("entropy", entropy))]
        ranks = Ranks.of(self._group, device or torch.device("cpu"))
        return self._choose(rows, np.stack(columns, 1), ranks, began)

    # --- the choice

    def _choose(self, rows: Rows, scores: NDArray[np.floating[Any]], ranks: Ranks, began: float) -> Choice:
        sizes = rows.num_trained
        bounds = np.concatenate(([0], np.cumsum(sizes)))
        means = [sample_means(scores[:, column], bounds) for column in (0, 1)]
        own = np.stack([*means, sizes.astype(np.float64), _keys(rows)], 1)  # (S, 4)
        every = ranks.gather(own)
        whole = np.concatenate(every)
        start = sum(len(part) for part in every[: ranks.rank])
        labels, is_kept, record = self._population(whole, began)
        here = slice(start, start + len(rows))
        quadrants, kept = labels[here], is_kept[here]
        masks = self._masks(rows, scores[:, 0], bounds, quadrants, kept, is_warmup=record.is_warmup)
        if ranks.rank == 0 and not self._is_quiet:
            log_step(record)
            for tell in self._records:
                tell(record)
        self.step += 1
        return Choice(rows.with_mask(masks), kept, quadrants, means[0], means[1], record)

    def _population(
        self, whole: NDArray[np.float64], began: float
    ) -> tuple[NDArray[np.int8], NDArray[np.bool_], StepRecord]:
        """Labels and choice of the global batch (N, 4), the same on every rank."""
        usable = np.isfinite(whole[:, :2]).all(1)
        labels, is_kept = np.zeros(len(whole), np.int8), np.zeros(len(whole), np.bool_)
        if not usable.any():
            return labels, is_kept, self._nothing(whole, began)
        a, scored = self.arguments, whole[usable]
        is_warmup = self.step < a.warmup_steps
        drawn = uniform(a.seed, np.full(len(scored), self.step), np.arange(len(scored)))
        found = select(
            scored[:, 0],
            scored[:, 1],
            sample_keep_ratio=a.sample_keep_ratio,
            bisect_max_iter=a.bisect_max_iter,
            rule=self._rule,
            priority=drawn if is_warmup else None,
        )
        labels[usable], is_kept[usable] = found.labels, found.is_kept
        sizes = scored[:, 2].astype(np.int64)
        left = np.where(self._prunable(found.labels, is_warmup=is_warmup), self._tokens_left(sizes), sizes)
        record = StepRecord(
            step=self.step,
            num_samples=len(scored),
            num_rejected=len(whole) - len(scored),
            target=found.target,
            kept=found.kept,
            counts=dict(zip(NAMES, found.counts.values(), strict=True)),
            thresholds=found.thresholds,
            tokens_before=int(sizes.sum()),
            tokens_after=int(left[found.is_kept].sum()),
            is_warmup=is_warmup,
            seconds=time.perf_counter() - began,
            drift=self._drift.moves(scored[:, 3], found.labels),
        )
        return labels, is_kept, record

    def _masks(
        self,
        rows: Rows,
        nll: NDArray[np.floating[Any]],
        bounds: NDArray[np.int64],
        quadrants: NDArray[np.int8],
        is_kept: NDArray[np.bool_],
        *,
        is_warmup: bool,
    ) -> NDArray[np.int8]:
        """Final masks (L,) of this rank's rows."""
        a = self.arguments
        prunable = self._prunable(quadrants, is_warmup=is_warmup) & is_kept
        masks = prune_token_masks(
            rows.loss_mask,
            rows.offsets,
            np.where(np.repeat(prunable, np.diff(bounds)), nll, 0.0),
            prunable,
            token_keep_ratio=a.token_keep_ratio,
            neighbor_lambda=a.neighbor_lambda,
            min_tokens_to_prune=a.min_tokens_to_prune,
            token_strategy=a.token_strategy,
            seed=a.seed + self.step,
        )
        return masks * np.repeat(is_kept, rows.lengths).astype(np.int8)

    def _prunable(self, quadrants: NDArray[np.int8], *, is_warmup: bool) -> NDArray[np.bool_]:
        prunable: NDArray[np.bool_] = (quadrants == 2) & (not is_warmup)
        return prunable

    def _tokens_left(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        a = self.arguments
        return tokens_left(
            sizes,
            token_keep_ratio=a.token_keep_ratio,
            min_tokens_to_prune=a.min_tokens_to_prune,
            token_strategy=a.token_strategy,
        )

    def _nothing(self, whole: NDArray[np.float64], began: float) -> StepRecord:
        """A step without a sample that could be scored."""
        if (whole[:, 2] > 0).any():
            raise DataError(
                f"none of the {len(whole)} samples of step {self.step} has finite scores",
                "The model has most likely diverged: look at its loss and its gradients before this step.",
            )
        log.warning("[Q-Tuning] step %d has no trained token; there is nothing to train on", self.step)
        seconds = time.perf_counter() - began
        counts = dict.fromkeys(NAMES, 0)
        return StepRecord(self.step, 0, len(whole), 0, 0, counts, NOWHERE, 0, 0, is_warmup=False, seconds=seconds)


def _keys(rows: Rows) -> NDArray[np.float64]:
    """A number for the content of each row, (S,), that every rank finds: 52 bits, which float64 holds exactly."""
    parts = np.split(rows.input_ids, rows.offsets[1:-1]) if len(rows) else []
    digests = [hashlib.blake2b(part.tobytes(), digest_size=8).digest() for part in parts]
    numbers: NDArray[np.uint64] = np.frombuffer(b"".join(digests), "<u8") >> np.uint64(12)
    return numbers.astype(np.float64)


def _filler(rows: Rows) -> Rows:
    """A row without a trained token, for a batch that gets no other: its loss is 0, and so are its gradients."""
    ids = rows.input_ids[:2] if len(rows.input_ids) >= 2 else np.zeros(2, np.int64)
    return Rows.of(ids, np.zeros(2, np.int8), np.array([2], np.int64))


def _trained_values(values: Sequence[ArrayLike], rows: Rows, name: str) -> NDArray[np.float64]:
    """Values of trained tokens, (M,)."""
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
