"""A comparison of strategies over one finished output, without a model. pairing.py compares several outputs.

`compare` counts the samples and tokens that strategies and ratios would keep of one scored output. It needs three
numbers a sample and one column to group by, so the whole population is in memory: some 150 bytes a sample while a
strategy is ranked. Tokens are counted and not chosen, since the number that stage 2 leaves of a sample does not depend
on the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.ingest.rows import text_of
from qtune_service.output.columns import coded, num_protected
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.plane import Quadrant, QuadrantRule
from qtune_service.selection.strategies import loss_sum, mean_of, priority_of
from qtune_service.selection.thresholds import Selection, select
from qtune_service.selection.token_masks import tokens_left

MAX_SAMPLES = 50_000_000
MAX_GROUPS = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredColumns:
    """The columns of all scored samples of an output, in their order."""

    mean_nll: NDArray[np.float64]  # (N,) nats
    mean_entropy: NDArray[np.float64]  # (N,) nats
    num_tokens: NDArray[np.int32]  # (N,) trained tokens
    group: NDArray[np.int32]  # (N,) position in `groups`
    groups: tuple[str, ...]
    """Values of the column to group by, the most frequent first. Empty without such a column."""
    num_protected: NDArray[np.int32]  # (N,) trained tokens that `keep_end_of_turn` protects


@dataclass(frozen=True, slots=True)
class Candidate:
    """A named way to choose samples."""

    name: str
    prune: PruneSpec
    rule: QuadrantRule | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The samples that a candidate keeps at one ratio."""

    name: str
    sample_keep_ratio: float
    kept: NDArray[np.bool_]  # (N,)
    num_kept: int
    tokens: int
    """Trained tokens left after stage 2."""
    kept_by_group: NDArray[np.int64]  # (G,)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The choices of all candidates at one ratio."""

    sample_keep_ratio: float
    choices: tuple[Choice, ...]
    overlap: NDArray[np.float64]
    """(C, C): of the samples that the row's choice keeps, the share that the column's choice keeps too."""


def read_columns(finished: FinishedOutput, by: str | None) -> ScoredColumns:
    """Read the columns that strategies need. by: a column of the records to group by.

    Raise DataError for too many samples or none, and SpecError for an unknown column.
    """
    if finished.num_samples > MAX_SAMPLES:
        raise DataError(
            f"{finished.root} has {finished.num_samples:,} scored samples, "
            f"more than the {MAX_SAMPLES:,} that can be compared",
            "Score a part of the data (--limit), or prune with each strategy: qtune prune --from-scores.",
        )
    name = _column(finished, by)
    names = ["mean_nll", "mean_entropy", "num_tokens", *([name] if name else [])]
    table = pa.concat_tables([finished.scores(shard, names) for shard in finished.shards])
    if not table.num_rows:
        raise DataError(f"{finished.root} has no scored sample", "Its rejected/ gives the reason for each record.")
    codes, groups = _groups(text_of(table, name)) if name else (np.zeros(table.num_rows, np.int32), ())
    nll, entropy, num_tokens = (table[n].to_numpy() for n in names[:3])
    protected = [num_protected(partial(finished.scores, shard), finished.stop_ids) for shard in finished.shards]
    return ScoredColumns(nll, entropy, num_tokens, codes, groups, np.concatenate(protected))


def compare(columns: ScoredColumns, candidates: Sequence[Candidate], ratios: Sequence[float]) -> list[Comparison]:
    """Return the choice of each candidate at each ratio."""
    compared = []
    for ratio in ratios:
        choices = tuple(_choose(columns, candidate, ratio) for candidate in candidates)
        shares = [[_share(one.kept, other.kept) for other in choices] for one in choices]
        compared.append(Comparison(ratio, choices, np.array(shares)))
    return compared


def _choose(columns: ScoredColumns, candidate: Candidate, ratio: float) -> Choice:
    prune, nll = candidate.prune, columns.mean_nll
    priority = priority_of(prune.strategy, prune.strategy_order, prune.seed, lambda: mean_of(loss_sum(nll), len(nll)))
    selection = select(
        nll,
        columns.mean_entropy,
        sample_keep_ratio=ratio,
        bisect_max_iter=prune.bisect_max_iter,
        rule=candidate.rule,
        priority=None if priority is None else priority.keys(nll, columns.mean_entropy, columns.num_tokens, 0),
    )
    kept = selection.is_kept
    return Choice(
        name=candidate.name,
        sample_keep_ratio=ratio,
        kept=kept,
        num_kept=selection.kept,
        tokens=_tokens(columns, selection, prune),
        kept_by_group=np.bincount(columns.group[kept], minlength=len(columns.groups)),
    )


def _tokens(columns: ScoredColumns, selection: Selection, prune: PruneSpec) -> int:
    """Count the trained tokens left. Stage 2 prunes the method's Q2 samples, and all samples of other strategies."""
    left = tokens_left(
        columns.num_tokens,
        columns.num_protected if prune.keep_end_of_turn else None,
        token_keep_ratio=prune.token_keep_ratio,
        min_tokens_to_prune=prune.min_tokens_to_prune,
        token_strategy=prune.token_strategy,
    )
    is_pruned = selection.labels == Quadrant.Q2 if prune.strategy == "q_tuning" else True
    return int(np.where(is_pruned, left, columns.num_tokens)[selection.is_kept].sum())


def _share(kept: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    size = int(np.count_nonzero(kept))
    return int(np.count_nonzero(kept & other)) / size if size else 0.0


def _column(finished: FinishedOutput, by: str | None) -> str | None:
    """Return the name in scores/ of a column of the records."""
    if by is None:
        return finished.category_column
    names = {own: name for name, own in finished.own_columns.items()}
    if by not in names:
        raise SpecError(f"the records have no column {by!r}", f"Their columns: {', '.join(names) or 'none'}.")
    return names[by]


def _groups(column: Any) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return each row's group, and the names of the groups, the most frequent first."""
    codes, names = coded(column)
    if len(names) > MAX_GROUPS:
        raise SpecError(
            f"the column to group by has {len(names):,} different values", f"Choose one with at most {MAX_GROUPS:,}."
        )
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names))
    return rank[codes], tuple(names[i] for i in order)
