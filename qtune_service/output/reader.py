"""A finished output, read back: what reports, exports, comparisons and the service know of a job.

Nothing here needs a model. Rows of scores/ and quadrants/ lie side by side: row i of a shard is the same sample in
both. A sample's place in the population, `index`, counts scored samples in shard order.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from qtune_service.output.file_lists import damaged, part_files, rows_by_shard
from qtune_service.output.layout import Output
from qtune_service.output.texts import Decode, read_decoder
from qtune_service.selection.plane import Quadrant

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
