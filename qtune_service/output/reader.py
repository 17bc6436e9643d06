"""Reader of a finished output, for reports, exports, comparisons and the service. It needs no model.

Rows of scores/ and quadrants/ are aligned: row i of a shard is the same sample in both. A sample's position in the
population, `index`, counts scored samples in shard order. Single samples are read token by token, with loss mask, final
mask and scores. Tokens become text by the tokenizer that is saved in the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from qtune_service.ingest.rows import records_of
from qtune_service.output.columns import final_masks, ragged
from qtune_service.output.layout import Output, damaged, part_files, part_path, rows_by_shard
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.token_masks import neighbor_scores, trainable
from qtune_service.spec_files import as_it_ran

Decode = Callable[[list[int]], str]


def read_decoder(output: Output) -> Decode:
    """Return a function from token ids to text, special tokens included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(output.read_bytes("tokenizer", "tokenizer.json").decode())

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode


Model = TypeVar("Model", bound=BaseModel)


class _Scoring(BaseModel):
    """The fields of the manifest's `scoring` that readers use."""

    shards: dict[int, Annotated[int, Field(ge=0)]]
    own_columns: dict[str, str]
    category_column: str | None
    stop_token_ids: tuple[int, ...] = ()


class _Figures(BaseModel):
    """The figures of the manifest that are shown."""

    rejected_reasons: dict[str, int] = {}
    tokens: dict[str, int] = {}
    thresholds: dict[str, float | None] = {}
    """Infinity is text, since JSON has no infinity."""


@dataclass(frozen=True)
class FinishedOutput:
    """The folder of a complete job. Its properties raise OutputConflictError if it is not complete."""

    root: str
    may_be_link: bool = True
    """See `Output`."""

    @property
    def folder(self) -> Output:
        """Return the paths of the folder."""
        return Output(self.root, self.may_be_link)

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """Return manifest.json."""
        return self.folder.require_manifest()

    @cached_property
    def spec(self) -> JobSpec:
        """Return the spec of the job. Raise OutputConflictError if the manifest has no valid one."""
        return _checked(JobSpec, as_it_ran(self.manifest.get("spec")), "spec")

    @cached_property
    def _scoring(self) -> _Scoring:
        return _checked(_Scoring, self.manifest.get("scoring"), "scoring")

    @cached_property
    def _figures(self) -> _Figures:
        names = {name: self.manifest[name] for name in _Figures.model_fields if name in self.manifest}
        return _checked(_Figures, names, "figures")

    @property
    def rejected_reasons(self) -> dict[str, int]:
        """Return the number of rejected records by reason."""
        return self._figures.rejected_reasons

    @property
    def alpha(self) -> float | None:
        """Return the alpha of the kept corners, None for an output with scores only."""
        return self._figures.thresholds.get("alpha")

    @property
    def tokens(self) -> dict[str, int]:
        """Return the token counts: scored, before and after pruning."""
        return self._figures.tokens

    @property
    def prune(self) -> PruneSpec:
        """Return the arguments of the pruning. Raise OutputConflictError for an output with scores only."""
        if self.spec.prune is None:
            raise OutputConflictError(
                f"{self.root} holds scores only",
                f"Prune it first, in seconds: qtune prune --from-scores {self.root} --output NEW",
            )
        return self.spec.prune

    @cached_property
    def shards(self) -> dict[int, int]:
        """Return the number of scored samples of each shard that has any, in order."""
        return self._scoring.shards

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the tokens that end turns. Empty for outputs of earlier versions."""
        return self._scoring.stop_token_ids

    @cached_property
    def starts(self) -> dict[int, int]:
        """Return the population index of the first scored sample of each shard."""
        ends = np.cumsum(list(self.shards.values())).tolist()
        return {s: end - rows for (s, rows), end in zip(self.shards.items(), ends, strict=True)}

    @property
    def num_samples(self) -> int:
        """Return the number of scored samples."""
        return sum(self.shards.values())

    @cached_property
    def pruned_shards(self) -> dict[int, int]:
        """Return the number of kept samples of each shard that has any, in order."""
        return rows_by_shard(part_files(self.manifest, "pruned"))

    @property
    def own_columns(self) -> dict[str, str]:
        """Return the records' own columns: name in scores/ -> name in the records."""
        return dict(self._scoring.own_columns)

    @property
    def category_column(self) -> str | None:
        """Return the column of scores/ with the category."""
        return self._scoring.category_column

    @cached_property
    def _paths(self) -> dict[tuple[str, int], str]:
        return {(file.folder, file.shard): file.path for file in part_files(self.manifest)}

    def path(self, folder: str, shard: int) -> str:
        """Return the path of a shard's file below the output."""
        return self._paths.get((folder, shard)) or part_path(folder, shard)

    def decoder(self) -> Decode:
        """Return a function from token ids to text, special tokens included."""
        return read_decoder(self.folder)

    def scores(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Read rows of scores/."""
        return self.folder.read_part(self.path("scores", shard), columns)

    def quadrants(self, shard: int) -> pa.Table:
        """Read rows of quadrants/: sample_id, quadrant, error_rank, entropy_rank, kept."""
        table = self.folder.read_part(self.path("quadrants", shard))
        if "kept" in table.column_names:
            return table
        kept = pc.is_in(table["quadrant"], pa.array(["Q2", "Q4"]))
        return table.append_column("kept", kept)

    def labels(self, shard: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Return each sample's quadrant 1..4 (S,), and whether it is kept (S,)."""
        table = self.quadrants(shard)
        names = pc.index_in(table["quadrant"], pa.array([quadrant.name for quadrant in Quadrant]))
        return names.to_numpy().astype(np.int8) + np.int8(1), table["kept"].to_numpy()

    def pruned(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """Read rows of pruned/."""
        return self.folder.read_part(self.path("pruned", shard), columns)


def _checked(kind: type[Model], part: Any, what: str) -> Model:
    """Validate a part of a manifest, which others may have written. Raise OutputConflictError if it is damaged."""
    try:
        return kind.model_validate(part)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise damaged(f"its {what} is not valid: {first['msg']}") from None


@dataclass(frozen=True, slots=True, eq=False)
class SampleTokens:
    """The tokens of a sample. Scores are NaN where a token is not trained on."""

    input_ids: NDArray[np.int64]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) tokens that the trainer would train on
    final_mask: NDArray[np.int8]  # (T,) of these, the tokens that the job leaves
    nll: NDArray[np.float64]  # (T,) nats
    entropy: NDArray[np.float64]  # (T,) nats
    smoothed: NDArray[np.float64]  # (T,) score by which stage 2 sorts; NaN if only scored

    @property
    def num_removed(self) -> int:
        """Return the number of tokens that the job removes from the loss."""
        return int(self.loss_mask.sum()) - int(self.final_mask.sum())


TOKEN_COLUMNS = ("input_ids", "loss_mask", "nll", "entropy")


def sample_tokens(
    scores: pa.Table, finals: Iterable[NDArray[np.generic]], prune: PruneSpec | None
) -> Iterator[SampleTokens]:
    """Yield the tokens of each sample of a scores table with TOKEN_COLUMNS. finals: a final mask (T,) each.

    prune is None for an output that was only scored.
    """
    columns = (ragged(scores[name]).rows() for name in TOKEN_COLUMNS)
    for ids, loss_mask, nll, entropy, final in zip(*columns, finals, strict=True):
        mask = trainable(np.asarray(loss_mask, np.int8), np.array([0, len(loss_mask)]))
        positions = np.flatnonzero(mask)
        token_scores = np.full((3, len(mask)), np.nan)
        token_scores[:2, positions] = nll, entropy
        if prune is not None:
            token_scores[2, positions] = neighbor_scores(np.asarray(nll, np.float64), positions, prune.smoothing)
        yield SampleTokens(np.asarray(ids, np.int64), mask, np.asarray(final, np.int8) & mask, *token_scores)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredSample:
    """A scored sample."""

    index: int
    """Position in the population."""
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
    tokens: SampleTokens
    """The final mask of a dropped sample is the one that it would have if it were kept."""
    own: dict[str, Any]
    """The record's own columns, by their names in the record."""


def read_samples(finished: FinishedOutput, shard: int, rows: Sequence[int]) -> list[ScoredSample]:
    """Read some samples of a shard by their rows, in the order of `rows`."""
    at = np.asarray(rows, np.int64)
    labels, kept = finished.labels(shard)
    labels, kept = labels[at], kept[at]
    ranks = finished.quadrants(shard).take(at).select(["error_rank", "entropy_rank"]).to_pylist()
    scores = finished.scores(shard).take(at)
    names = finished.own_columns
    own = records_of(scores.select(list(names))) if names else [{}] * scores.num_rows
    index = finished.starts[shard] + at
    finals = final_masks(scores, labels, kept, index, finished.prune, finished.stop_ids).rows()
    tokens = list(sample_tokens(scores, finals, finished.prune))
    fields = scores.select(["sample_id", "source", "line", "mean_nll", "perplexity", "mean_entropy"]).to_pylist()
    return [
        ScoredSample(
            index=int(index[i]),
            **fields[i],
            quadrant=Quadrant(labels[i]).name,
            kept=bool(kept[i]),
            **ranks[i],
            tokens=tokens[i],
            own={names[name]: value for name, value in own[i].items()},
        )
        for i in range(len(at))
    ]
