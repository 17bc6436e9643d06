"""A finished output, read back: what reports, exports, comparisons and the service know of a job.

Nothing here needs a model. Rows of scores/ and quadrants/ lie side by side: row i of a shard is the same sample in
both. A sample's place in the population, `index`, counts scored samples in shard order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qtune_service.config import JobSpec, PruneSpec
from qtune_service.core.plane import Quadrant
from qtune_service.errors import OutputConflictError
from qtune_service.outputs.folder import Output
from qtune_service.outputs.manifest_files import part_files, rows_by_shard
from qtune_service.outputs.texts import Decode, read_decoder


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
        """What the job was asked for."""
        return JobSpec.model_validate(self.manifest["spec"])

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
        return {int(index): rows for index, rows in self.manifest["scoring"]["shards"].items()}

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
        return dict(self.manifest["scoring"]["own_columns"])

    @property
    def category_column(self) -> str | None:
        """Column of scores/ that holds the category."""
        return self.manifest["scoring"]["category_column"]  # type: ignore[no-any-return]

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
