"""What different strategies and ratios would keep of one scored dataset, without a model and without writing anything.

All of it works on three numbers a sample and on one column to group by, so the whole population is held in memory:
some 150 bytes a sample while a strategy is ranked. Tokens left are counted, not chosen: how many tokens stage 2 leaves
of a sample does not depend on which ones they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.output.columns import coded
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.plane import Quadrant, QuadrantRule
from qtune_service.selection.strategies import loss_sum, mean_of, priority_of
from qtune_service.selection.thresholds import Selection, select
from qtune_service.selection.token_masks import tokens_left

MAX_SAMPLES = 50_000_000
MAX_GROUPS = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredColumns:
    """All scored samples of an output, in their order."""

    mean_nll: NDArray[np.float64]  # (N,) nats
    mean_entropy: NDArray[np.float64]  # (N,) nats
    num_tokens: NDArray[np.int32]  # (N,) trained tokens
    group: NDArray[np.int32]  # (N,) place in `groups`
    groups: tuple[str, ...]
    """Values of the column to group by, the most frequent first; empty without one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to choose samples, as it was named."""

    name: str
    prune: PruneSpec
    rule: QuadrantRule | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a candidate keeps at a ratio."""

    name: str
    sample_keep_ratio: float
    kept: NDArray[np.bool_]  # (N,)
    num_kept: int
    tokens: int
    """Trained tokens left, after stage 2."""
    kept_by_group: NDArray[np.int64]  # (G,)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Choices at one ratio."""

    sample_keep_ratio: float
    choices: tuple[Choice, ...]
    overlap: NDArray[np.float64]
    """(C, C): of what the row's choice keeps, the share that the column's keeps too."""


def read_columns(finished: FinishedOutput, by: str | None) -> ScoredColumns:
    """Read what strategies go by. by: an own column of the records. Raises DataError and SpecError."""
    if finished.num_samples > MAX_SAMPLES:
        raise DataError(
            f"{finished.root} has {finished.num_samples:,} scored samples; more than {MAX_SAMPLES:,} are not compared",
            "Score a sample of the data (--limit), or prune with each strategy: qtune prune --from-scores.",
        )
    name = _column(finished, by)
    names = ["mean_nll", "mean_entropy", "num_tokens", *([name] if name else [])]
    table = pa.concat_tables([finished.scores(shard, names) for shard in finished.shards])
    if not table.num_rows:
        raise DataError(f"{finished.root} has no scored sample", "Look at its rejected/.")
    codes, groups = _groups(table[name]) if name else (np.zeros(table.num_rows, np.int32), ())
    nll, entropy, num_tokens = (table[n].to_numpy() for n in names[:3])
    return ScoredColumns(nll, entropy, num_tokens, codes, groups)


def compare(columns: ScoredColumns, candidates: Sequence[Candidate], ratios: Sequence[float]) -> list[Comparison]:
    """What each candidate keeps at each ratio."""
    compared = []
    for ratio in ratios:
        choices = tuple(_choose(columns, candidate, ratio) for candidate in candidates)
        shares = [[_share(one.kept, other.kept) for other in choices] for one in choices]
        compared.append(Comparison(ratio, choices, np.array(shares)))
    return compared


def _choose(columns: ScoredColumns, candidate: Candidate, ratio: float) -> Choice:
    prune = candidate.prune
    selection = select(
        columns.mean_nll,
        columns.mean_entropy,
        sample_keep_ratio=ratio,
        bisect_max_iter=prune.bisect_max_iter,
        rule=candidate.rule,
        priority=_keys(columns, prune),
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


def _keys(columns: ScoredColumns, prune: PruneSpec) -> NDArray[np.float64] | None:
    nll = columns.mean_nll
    priority = priority_of(prune.strategy, prune.strategy_order, prune.seed, lambda: mean_of(loss_sum(nll), len(nll)))
    return None if priority is None else priority.keys(nll, columns.mean_entropy, columns.num_tokens, 0)


def _tokens(columns: ScoredColumns, selection: Selection, prune: PruneSpec) -> int:
    """Of the method stage 2 prunes Q2 samples, of the others all."""
    left = tokens_left(
        columns.num_tokens,
        token_keep_ratio=prune.token_keep_ratio,
        min_tokens_to_prune=prune.min_tokens_to_prune,
        token_strategy=prune.token_strategy,
    )
    is_pruned = selection.labels == Quadrant.Q2 if prune.strategy == "q_tuning" else True
    return int(np.where(is_pruned, left, columns.num_tokens)[selection.is_kept].sum())


def _share(of: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    size = int(np.count_nonzero(of))
    return int(np.count_nonzero(of & other)) / size if size else 0.0


def _column(finished: FinishedOutput, by: str | None) -> str | None:
    """The name in scores/ of a column of the records."""
    if by is None:
        return finished.category_column
    names = {own: name for name, own in finished.own_columns.items()}
    if by not in names:
        raise SpecError(f"the records have no column {by!r}", f"Their columns: {', '.join(names) or 'none'}.")
    return names[by]


def _groups(column: Any) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Each row's group, and the groups' names, the most frequent first."""
    codes, names = coded(column)
    if len(names) > MAX_GROUPS:
        raise SpecError(
            f"the column to group by has {len(names):,} different values", f"Choose one with at most {MAX_GROUPS:,}."
        )
    order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
    place = np.empty(len(names), np.int32)
    place[order] = np.arange(len(names))
    return place[codes], tuple(names[i] for i in order)
