"""One export in the making: where from, where to, what the user chose, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from qtune_service.export.tables import resized
from qtune_service.export.writers import Writer
from qtune_service.output.reader import FinishedOutput
from qtune_service.storage.file_io import WrittenFile


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose."""

    rows_per_file: int | None = None
    """None: a file a shard."""
    pack_length: int | None = None
    """Tokens of a packed row."""
    license: str | None = None
    """Of the dataset, by the hub's names."""
    max_samples: int = 10_000
    """Scored samples that analysis files are made of at most: they are for looking, and large."""


@dataclass(slots=True)
class Export:
    """An output on its way into a folder."""

    finished: FinishedOutput
    folder: str
    options: Options
    num_rows: int = 0
    num_bytes: int = 0
    """Of the rows in Arrow."""
    notes: list[str] = field(default_factory=list)
    """What the user must know of the result."""

    def write(self, writer: Writer, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        """Write tables, a file of the wanted size each, and count."""
        return writer(self.folder, self._counted(resized(tables, self.options.rows_per_file)))

    def _counted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.num_rows += table.num_rows
            self.num_bytes += table.nbytes
            yield table
