"""A finished output, read back: what reports, exports, comparisons and the service know of a job.

Nothing here needs a model. Rows of scores/ and quadrants/ lie side by side: row i of a shard is the same sample in
both. A sample's place in the population, `index`, counts scored samples in shard order.

Tokens of an output as text, by the tokenizer that made them.

Single samples of a finished output, token by token: what was trained on, what was removed, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from qtune_service.config import JobSpec, PruneSpec
from qtune_service.errors import OutputConflictError
from qtune_service.ingest.schema import restore
from qtune_service.output.columns import final_masks, ragged
from qtune_service.output.file_lists import damaged, part_files, rows_by_shard
from qtune_service.output.layout import Output
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.token_masks import neighbor_scores, trainable

Decode = Callable[[list[int]], str]


def read_decoder(output: Output) -> Decode:
    """A function from ids to text, special tokens included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(output.read_bytes("tokenizer", "tokenizer.json").decode())

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode


Model = TypeVar("Model", bound=BaseModel)


class _Scoring(BaseModel):
    """The manifest's `scoring`, as far as it is used to read the output."""

    shards: dict[int, Annotated[int, Field(ge=0)]]
    own_columns: dict[str, str]
    category_column: str | None


class _Figures(BaseModel):
    """Numbers of the manifest that are shown."""

    rejected_reasons: dict[str, int] = {}
    tokens: dict[str, int] = {}
    thresholds: dict[str, float | None] = {}
    """JSON has no infinity: it is written as text."""


@dataclass(frozen=True)
class FinishedOutput:
    """The folder of a job that is complete. Raises OutputConflictError where it is not."""

    root: str
    may_be_link: bool = True
    """See `Output`."""

    @property
    def folder(self) -> Output:
        """Its paths."""
        return Output(self.root, self.may_be_link)

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Its manifest.json."""
        return self.folder.require_manifest()

    @cached_property
    def spec(self) -> JobSpec:
        """What the job was asked for. Raises OutputConflictError where the manifest has none that is valid."""
        return _checked(JobSpec, self.manifest.get("spec"), "spec")

    @cached_property
    def _scoring(self) -> _Scoring:
        return _checked(_Scoring, self.manifest.get("scoring"), "scoring")

    @cached_property
    def _figures(self) -> _Figures:
        names = {name: self.manifest[name] for name in _Figures.model_fields if name in self.manifest}
        return _checked(_Figures, names, "figures")

    @property
    def rejected_reasons(self) -> dict[str, int]:
        """Reason -> rejected records."""
        return self._figures.rejected_reasons

    @property
    def alpha(self) -> float | None:
        """The alpha of the kept corners; None where the output was only scored."""
        return self._figures.thresholds.get("alpha")

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the result: scored, before and after pruning."""
        return self._figures.tokens

    @property
    def prune(self) -> PruneSpec:
        """How it was pruned. Raises OutputConflictError where it was only scored."""
        if self.spec.prune is None:
            raise OutputConflictError(
                f"{self.root} holds scores only",
                f"Prune it first, in seconds: qtune prune --from-scores {self.root} --output NEW",
            )
        return self.spec.prune

    @cached_property
    def shards(self) -> dict[int, int]:
        """Shards with scored samples, in order -> how many."""
        return self._scoring.shards

    @cached_property
    def starts(self) -> dict[int, int]:
        """Shards with scored samples -> the place of their first one in the population."""
        ends = np.cumsum(list(self.shards.values())).tolist()
        return {s: end - rows for (s, rows), end in zip(self.shards.items(), ends, strict=True)}

    @property
    def num_samples(self) -> int:
        """Scored samples."""
        return sum(self.shards.values())

    @cached_property
    def pruned_shards(self) -> dict[int, int]:
        """Shards with kept samples, in order -> how many."""
        return rows_by_shard(part_files(self.manifest, "pruned"))

    @property
    def own_columns(self) -> dict[str, str]:
        """The records' own columns: name in scores/ -> name in the records."""
        return dict(self._scoring.own_columns)

    @property
    def category_column(self) -> str | None:
        """Column of scores/ that holds the category."""
        return self._scoring.category_column

    def decoder(self) -> Decode:
        """From ids to text, special tokens included."""
        return read_decoder(self.folder)

    def scores(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Rows of scores/."""
        return self.folder.read_part("scores", shard, columns)

    def quadrants(self, shard: int) -> pa.Table:
        """Rows of quadrants/: sample_id, quadrant, error_rank, entropy_rank, kept."""
        table = self.folder.read_part("quadrants", shard)
        if "kept" in table.column_names:
            return table
        kept = pc.is_in(table["quadrant"], pa.array(["Q2", "Q4"]))
        return table.append_column("kept", kept)

    def labels(self, shard: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Each sample's quadrant 1..4 (S,), and whether it is kept (S,)."""
        table = self.quadrants(shard)
        names = pc.index_in(table["quadrant"], pa.array([quadrant.name for quadrant in Quadrant]))
        return names.to_numpy().astype(np.int8) + np.int8(1), table["kept"].to_numpy()

    def pruned(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Rows of pruned/."""
        return self.folder.read_part("pruned", shard, columns)


def _checked(kind: type[Model], part: Any, what: str) -> Model:
    """Return a part of a manifest, which others may have written. Raise OutputConflictError where it is damaged."""
    try:
        return kind.model_validate(part)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise damaged(f"its {what} is wrong: {first['msg']}") from None


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
