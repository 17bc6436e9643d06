"""What different strategies and ratios would keep of one scored dataset, without a model and without writing anything.

All of it works on three numbers a sample and on one column to group by, so the whole population is held in memory:
some 150 bytes a sample while a strategy is ranked. Tokens left are counted, not chosen: how many tokens stage 2 leaves
of a sample does not depend on which ones they are.

What became of the same samples in two finished outputs: which both keep, which changed their quadrant.

A sample is the same where its file and its place in it are. Two outputs of the same input, the usual case, list the
same samples in the same order, and their columns are compared as they are; else they are joined. Some 100 bytes a
sample are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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


MAX_PAIRED_SAMPLES = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The samples of one output, in their order."""

    places: pa.Table
    """file, and the sample's place in it (S rows)."""
    quadrant: NDArray[np.int8]  # (S,) 1..4
    kept: NDArray[np.bool_]  # (S,)


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Two outputs, a and b."""

    a: Side
    b: Side
    rows: NDArray[np.int64]  # (2, C) of the samples that both have: places in a and in b, in a's order

    @property
    def moves(self) -> NDArray[np.int64]:
        """How many of the common samples are in which quadrant of a (row) and of b (column), (4, 4)."""
        cells = 4 * (self.a.quadrant[self.rows[0]] - 1).astype(np.int64) + self.b.quadrant[self.rows[1]] - 1
        return np.bincount(cells, minlength=16).reshape(4, 4)

    @property
    def fates(self) -> NDArray[np.int64]:
        """How many of them are dropped (0) or kept (1) by a (row) and by b (column), (2, 2)."""
        cells = 2 * self.a.kept[self.rows[0]].astype(np.int64) + self.b.kept[self.rows[1]]
        return np.bincount(cells, minlength=4).reshape(2, 2)

    def kept_by_one(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in a of what only a keeps, and in b of what only b keeps; (k,) each."""
        by_a, by_b = self.a.kept[self.rows[0]], self.b.kept[self.rows[1]]
        return self.rows[0][by_a & ~by_b], self.rows[1][by_b & ~by_a]


def pair(a: FinishedOutput, b: FinishedOutput) -> Pairing:
    """Read both. Raises DataError where they are too large, and OutputConflictError where one is only scored."""
    for finished in (a, b):
        if finished.num_samples > MAX_PAIRED_SAMPLES:
            raise DataError(
                f"{finished.root} has {finished.num_samples:,} samples; "
                f"more than {MAX_PAIRED_SAMPLES:,} are not compared",
                "Compare their counts, or ask with DuckDB: quadrants/ are Parquet files.",
            )
        _ = finished.prune
    sides = _read(a), _read(b)
    return Pairing(*sides, _common(sides[0].places, sides[1].places))


def _read(finished: FinishedOutput) -> Side:
    if not finished.shards:
        places = pa.table({"source": pa.array([], pa.string()), "record": pa.array([], pa.string())})
        return Side(places, np.empty(0, np.int8), np.empty(0, np.bool_))
    labels = [finished.labels(shard) for shard in finished.shards]
    names = pa.concat_tables([finished.scores(shard, ["sample_id", "source"]) for shard in finished.shards])
    record = pc.replace_substring_regex(names["sample_id"], "^[^-]*-", "")  # without the number of its file
    places = pa.table({"source": names["source"].cast(pa.string()), "record": record})
    return Side(places, np.concatenate([label for label, _ in labels]), np.concatenate([kept for _, kept in labels]))


def _common(a: pa.Table, b: pa.Table) -> NDArray[np.int64]:
    if a.equals(b):
        return np.tile(np.arange(a.num_rows), (2, 1))
    numbered = [
        table.append_column(name, pa.array(np.arange(table.num_rows))) for table, name in ((a, "in_a"), (b, "in_b"))
    ]
    joined = numbered[0].join(numbered[1], ["source", "record"], join_type="inner").sort_by("in_a")
    return np.stack([joined["in_a"].to_numpy(), joined["in_b"].to_numpy()])
