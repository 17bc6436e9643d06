"""Single samples of a finished output, token by token: what was trained on, what was removed, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.ingest.schema import restore
from qtune_service.output.columns import final_masks, ragged
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.token_masks import neighbor_scores, trainable


@dataclass(frozen=True, slots=True, eq=False)
class ScoredSample:
    """A scored sample. Token arrays are aligned with `input_ids`; scores are NaN where a token is not trained on."""

    index: int
    """Its place in the population."""
    sample_id: str
    source: str
    line: int | None
    quadrant: str
    kept: bool
    mean_nll: float  # nats
    perplexity: float
    mean_entropy: float  # nats
    error_rank: float  # mid-ranks in (0, 1)
    entropy_rank: float
    input_ids: NDArray[np.int64]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) what the trainer would train on
    final_mask: NDArray[np.int8]  # (T,) of this, what stage 2 leaves; of a dropped sample, as if it were kept
    nll: NDArray[np.float64]  # (T,) nats
    entropy: NDArray[np.float64]  # (T,) nats
    smoothed: NDArray[np.float64]  # (T,) what stage 2 orders by: perplexity mixed with the neighbours'
    own: dict[str, Any]
    """The record's own columns, by the names they have there."""

    @property
    def tokens_removed(self) -> int:
        """Trained tokens that stage 2 takes out of the loss."""
        return int(self.loss_mask.sum()) - int(self.final_mask.sum())


def read_samples(finished: FinishedOutput, shard: int, rows: Sequence[int]) -> list[ScoredSample]:
    """Some samples of a shard, by their rows, in the order asked for."""
    at = np.asarray(rows, np.int64)
    labels, kept = finished.labels(shard)
    quadrants = finished.quadrants(shard).take(at)
    scores = finished.scores(shard).take(at)
    index = finished.starts[shard] + at
    return list(_samples(finished, scores, quadrants, labels[at], kept[at], index))


def _samples(
    finished: FinishedOutput,
    scores: pa.Table,
    quadrants: pa.Table,
    labels: NDArray[np.int8],
    kept: NDArray[np.bool_],
    index: NDArray[np.int64],
) -> Iterator[ScoredSample]:
    names = finished.own_columns
    own = restore(scores.select(list(names)).to_pylist(), scores.schema) if names else [{}] * scores.num_rows
    finals = final_masks(scores, labels, kept, index, finished.prune).rows()
    tokens = {name: ragged(scores[name]).rows() for name in ("input_ids", "loss_mask", "nll", "entropy")}
    plain = scores.select(["sample_id", "source", "line", "mean_nll", "perplexity", "mean_entropy"]).to_pylist()
    ranks = quadrants.select(["error_rank", "entropy_rank"]).to_pylist()
    for i, (row, places) in enumerate(zip(plain, ranks, strict=True)):
        ids = np.asarray(tokens["input_ids"][i], np.int64)
        mask = trainable(np.asarray(tokens["loss_mask"][i], np.int8), np.array([0, len(ids)]))
        nll, entropy, smoothed = spread_scores(mask, tokens["nll"][i], tokens["entropy"][i], finished.prune)
        yield ScoredSample(
            index=int(index[i]),
            **row,
            quadrant=Quadrant(labels[i]).name,
            kept=bool(kept[i]),
            **places,
            input_ids=ids,
            loss_mask=mask,
            final_mask=np.asarray(finals[i], np.int8),
            nll=nll,
            entropy=entropy,
            smoothed=smoothed,
            own={names[name]: value for name, value in own[i].items()},
        )


def spread_scores(
    mask: NDArray[np.int8], nll: NDArray[Any], entropy: NDArray[Any], prune: PruneSpec
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores of n trained tokens, and what stage 2 orders by, at their places in the sample: (T,) each, else NaN."""
    positions = np.flatnonzero(mask)
    scores = (nll, entropy, neighbor_scores(np.asarray(nll, np.float64), positions, prune.smoothing))
    spread = np.full((3, len(mask)), np.nan)
    spread[:, positions] = scores
    return spread[0], spread[1], spread[2]
