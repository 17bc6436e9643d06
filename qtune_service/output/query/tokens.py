"""The tokens of some samples, whether their output was pruned or only scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.output.columns import final_masks, ragged
from qtune_service.output.query.fields import Records
from qtune_service.output.query.parts import read_rows_of
from qtune_service.output.query.rows import rows_by_shard
from qtune_service.output.reader import FinishedOutput
from qtune_service.output.samples import spread_scores
from qtune_service.selection.token_masks import trainable

COLUMNS = ("input_ids", "loss_mask", "nll", "entropy")


@dataclass(frozen=True, slots=True, eq=False)
class SampleTokens:
    """Arrays are aligned with `input_ids`; scores are NaN where a token is not trained on."""

    input_ids: NDArray[np.int64]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) what the trainer would train on
    final_mask: NDArray[np.int8]  # (T,) of this, what the job leaves: nothing of a sample that it drops
    nll: NDArray[np.float64]  # (T,) nats
    entropy: NDArray[np.float64]  # (T,) nats
    smoothed: NDArray[np.float64]  # (T,) what stage 2 orders by; NaN where the output was only scored

    @property
    def num_removed(self) -> int:
        """Trained tokens that are not trained on any more."""
        return int(self.loss_mask.sum()) - int(self.final_mask.sum())


def read_tokens(finished: FinishedOutput, records: Records, index: NDArray[np.int64]) -> list[SampleTokens]:
    """Tokens of some samples (k,), in the order asked for. Only the shards that hold them are read."""
    found: dict[int, SampleTokens] = {}
    for shard, rows in rows_by_shard(records, index).items():
        at = np.unique(rows)
        scores = read_rows_of(records.output, "scores", shard, COLUMNS, at)
        masks = _final_masks(finished, shard, at, scores)
        found |= dict(zip((records.starts[shard] + at).tolist(), _samples(finished, scores, masks), strict=True))
    return [found[i] for i in index.tolist()]


def _final_masks(
    finished: FinishedOutput, shard: int, rows: NDArray[np.int64], scores: pa.Table
) -> list[NDArray[np.generic]]:
    if finished.spec.prune is None:
        return ragged(scores["loss_mask"]).rows()
    labels, kept = finished.labels(shard)
    index = finished.starts[shard] + rows
    masks = final_masks(scores, labels[rows], kept[rows], index, finished.prune).rows()
    return [mask if is_kept else np.zeros_like(mask) for mask, is_kept in zip(masks, kept[rows].tolist(), strict=True)]


def _samples(finished: FinishedOutput, scores: pa.Table, finals: list[NDArray[np.generic]]) -> Iterator[SampleTokens]:
    columns = (ragged(scores[name]).rows() for name in COLUMNS)
    for ids, loss_mask, nll, entropy, final in zip(*columns, finals, strict=True):
        mask = trainable(np.asarray(loss_mask, np.int8), np.array([0, len(loss_mask)]))
        spread = np.full((3, len(mask)), np.nan)
        if finished.spec.prune is None:
            spread[:2, mask == 1] = nll, entropy
        else:
            spread = np.stack(spread_scores(mask, nll, entropy, finished.prune))
        yield SampleTokens(np.asarray(ids, np.int64), mask, np.asarray(final, np.int8) & mask, *spread)
