"""Columns of an output's Parquet files, and token columns as numpy arrays.

Token columns are ragged lists over one flat buffer with offsets, so numpy handles a shard as a few arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.token_masks import protected_tokens, prune_token_masks, trainable

IGNORE_INDEX = -100
"""Label of tokens that trainers leave out of the loss."""

CONTENT_ID_BYTES = 32
PROTECTED = "num_protected_tokens"
"""Column of scores/: the trained tokens that `keep_end_of_turn` protects."""
SCORES_RESERVED = frozenset(
    {"sample_id", "source", "line", "truncated", "mean_nll", "perplexity", "mean_entropy", "num_tokens"}
    | {PROTECTED, "input_ids", "loss_mask", "nll", "entropy", "quadrant"}
)
PRUNED_RESERVED = frozenset({"input_ids", "attention_mask", "labels", "loss_mask", "assistant_masks", "qtune"})


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of different lengths over one buffer: row i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: NDArray[np.generic]  # (L,)
    offsets: NDArray[np.int64]  # (S + 1,)

    def rows(self) -> list[NDArray[np.generic]]:
        """Return a view of each row."""
        return [self.flat[low:high] for low, high in pairwise(self.offsets.tolist())]


def row_sums(lists: Ragged) -> NDArray[np.int64]:
    """Return the sum of each row's values, (S,)."""
    return np.diff(np.concatenate([[0], np.cumsum(lists.flat, dtype=np.int64)])[lists.offsets])


def ragged(column: Any) -> Ragged:
    """Return a list column (a chunked array) as numpy arrays."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    flat = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return Ragged(flat, offsets - offsets[0])


def list_column(flat: NDArray[np.generic], offsets: NDArray[np.int64], value_type: pa.DataType) -> Any:
    """Return the list column of a flat array and its offsets."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, value_type))


def protected_of(scores: pa.Table, stop_ids: Collection[int]) -> Ragged:
    """Return which tokens of rows of scores/ or of encoded rows keep_end_of_turn protects, as booleans."""
    masks = ragged(scores["loss_mask"])
    mask = trainable(masks.flat.astype(np.int8), masks.offsets)
    return Ragged(protected_tokens(ragged(scores["input_ids"]).flat.astype(np.int32), mask, stop_ids), masks.offsets)


def content_ids(scores: pa.Table) -> list[bytes]:
    """Return the content id of each row, (S,): SHA-256 over `input_ids` and `loss_mask`, as int32 and int8.

    The same text under the same template and tokenizer has the same id in every dataset and order.
    """
    ids, masks = ragged(scores["input_ids"]), ragged(scores["loss_mask"])
    rows = zip(ids.rows(), masks.rows(), strict=True)
    return [sha256(np.asarray(i, "<i4").tobytes() + np.asarray(m, np.int8).tobytes()).digest() for i, m in rows]


def num_protected(read: Callable[[list[str]], pa.Table], stop_ids: Collection[int]) -> NDArray[np.int32]:
    """Return how many tokens of each row of a score shard are protected, (S,). read: returns columns of the shard.

    Shards of earlier versions have no column for it, so their tokens are read.
    """
    table = read([PROTECTED])
    if PROTECTED in table.column_names:
        found: NDArray[np.int32] = table[PROTECTED].to_numpy()
        return found
    return row_sums(protected_of(read(["input_ids", "loss_mask"]), stop_ids)).astype(np.int32)


def final_masks(
    scores: pa.Table,
    labels: NDArray[np.int8],
    kept: NDArray[np.bool_],
    index: NDArray[np.int64],
    spec: PruneSpec,
    stop_ids: Collection[int],
) -> Ragged:
    """Return the final loss mask (stage 2) of each row of scores/, as if the row were kept.

    labels, kept, index: (S,), index being the position in the population. Dropped samples of the method (Q1 and Q3)
    keep all tokens. stop_ids: the tokens that `keep_end_of_turn` protects besides the ends of spans.
    """
    masks, nll = ragged(scores["loss_mask"]), ragged(scores["nll"])
    final = prune_token_masks(
        masks.flat.astype(np.int8),
        masks.offsets,
        nll.flat.astype(np.float32),
        labels == Quadrant.Q2 if spec.strategy == "q_tuning" else kept,
        token_keep_ratio=spec.token_keep_ratio,
        neighbor_lambda=spec.smoothing,
        min_tokens_to_prune=spec.min_tokens_to_prune,
        token_strategy=spec.token_strategy,
        seed=spec.seed,
        row_index=index,
        protected=np.asarray(protected_of(scores, stop_ids).flat, np.bool_) if spec.keep_end_of_turn else None,
    )
    return Ragged(final, masks.offsets)


def quadrant_names(labels: NDArray[np.int8]) -> Any:
    """Return the names Q1 to Q4 of some labels, (S,)."""
    return pa.array(np.array([q.name for q in Quadrant])[labels.astype(np.int64) - 1], pa.string())


def coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """Return each row's code (S,), and the distinct values as text in order of appearance, which codes index."""
    array = column.combine_chunks()
    if not pa.types.is_string(array.type):
        array = pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    encoded = array.fill_null("(none)").dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
