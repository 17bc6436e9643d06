"""A folder that can be pushed to the hub as a dataset repository: Parquet files, and a card that describes them.

The card's front matter is read by machines: which files make up the split, of what types (as `datasets` names them),
how many rows. Its body says where the data come from and what was left out. Paths of this machine stay here: inputs
and local models appear by their last name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from qtune_service.export.card import render_card
from qtune_service.export.export import Export
from qtune_service.export.features import named_features
from qtune_service.export.tables import pruned_tables
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile


def check_repository(export: Export) -> None:
    """Raises DataError where a column is of a type that `datasets` does not have."""
    named_features(_schema(export))


def _schema(export: Export) -> pa.Schema:
    finished = export.finished
    with finished.folder.open_part("pruned", next(iter(finished.pruned_shards))) as file:
        return file.schema_arrow


def write_repository(export: Export) -> Iterator[WrittenFile]:
    """data/train-00000-of-0000N.parquet, ..., README.md."""
    names = _names(export)
    size = 0

    def write(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        for name, table in zip(names, tables, strict=True):
            yield file_io.write_table(file_io.join(folder, "data", name), table)

    for file in export.write(write, pruned_tables(export.finished)):
        size += file.size_bytes
        yield file
    about: dict[str, Any] = {
        "features": named_features(_schema(export)),
        "splits": [{"name": "train", "num_bytes": export.num_bytes, "num_examples": export.num_rows}],
        "download_size": size,
        "dataset_size": export.num_bytes,
    }
    card = render_card(export.finished, about, export.options.license)
    yield file_io.write_bytes(file_io.join(export.folder, "README.md"), card.encode())


def _names(export: Export) -> list[str]:
    shards = export.finished.pruned_shards
    wanted = export.options.rows_per_file
    total = len(shards) if wanted is None else -(-sum(shards.values()) // wanted)
    return [f"train-{number:05}-of-{total:05}.parquet" for number in range(total)]
