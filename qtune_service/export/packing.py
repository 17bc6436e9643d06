"""Packing of samples into rows of a fixed length, as Megatron-Bridge reads them.

A packed row is a concatenation of samples, and the offset of each. The trainer uses the last token of a sample only as
a label, so a sample of T tokens takes T - 1 positions. mask[t] refers to the label at t, which is token t + 1, so the
mask is shifted by one within each sample, as Megatron-Bridge's own preparation does.

The algorithm is first fit in the order of the samples, over a window of open rows: a sample goes into the first row
with room. If there is none and the window is full, the fullest row is closed. No sample is cut or padded. Memory: the
window, and the rows that a shard fills.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.export.writers import pruned_tables
from qtune_service.output.columns import list_column, ragged
from qtune_service.output.reader import FinishedOutput
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

WINDOW = 128
"""Number of open rows. More rows give a better fit, but take longer and change the order more."""
ROW_GROUP_ROWS = 500
"""Rows of a row group. Megatron-Bridge reads a whole row group to get one row."""

Sample = tuple[NDArray[Any], NDArray[Any]]  # ids (T,), shifted mask (T,)


@dataclass(slots=True)
class Packer:
    """The open rows, and statistics of the closed ones."""

    length: int
    window: int = WINDOW
    samples: int = 0
    rows: int = 0
    most_samples: int = 0
    longest: int = 0
    shortest_row: int = 0
    filled: int = 0
    _open: list[list[Sample]] = field(default_factory=list)
    _room: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def place(self, sample: Sample) -> list[Sample] | None:
        """Put a sample into a row. Return the row that was closed for it, if any."""
        size = len(sample[0]) - 1
        fits = self._room >= size
        closed = None
        at = int(fits.argmax()) if fits.any() else -1
        if at < 0:
            if len(self._open) == self.window:
                closed = self._close(int(self._room.argmin()))
            self._open.append([])
            self._room = np.append(self._room, self.length)
            at = len(self._open) - 1
        self._open[at].append(sample)
        self._room[at] -= size
        self.samples += 1
        self.longest = max(self.longest, size)
        return closed

    def rest(self) -> Iterator[list[Sample]]:
        """Close all rows and yield them."""
        while self._open:
            yield self._close(0)

    def _close(self, at: int) -> list[Sample]:
        row, used = self._open.pop(at), self.length - int(self._room[at])
        self._room = np.delete(self._room, at)
        self.shortest_row = used if self.rows == 0 else min(self.shortest_row, used)
        self.most_samples = max(self.most_samples, len(row))
        self.filled += used
        self.rows += 1
        return row

    def metadata(self) -> list[dict[str, float]]:
        """Return Megatron-Bridge's metadata of packed data, under its names (`packed_metadata_path`)."""
        return [
            {
                "dataset_max_seqlen": self.longest,
                "max_samples_per_bin": self.most_samples,
                "packing_factor": round(self.samples / self.rows, 2),
                "packing_efficiency": round(100 * self.filled / (self.rows * self.length), 2),
                "pack_size": self.length,
                "min_packed_seqlen": self.shortest_row,
            }
        ]


def check_lengths(finished: FinishedOutput, length: int) -> None:
    """Raise DataError if samples are longer than a row."""
    too_long = longest = 0
    for table in pruned_tables(finished, ["input_ids"]):
        sizes = pc.list_value_length(table["input_ids"]).to_numpy() - 1
        too_long += int(np.count_nonzero(sizes > length))
        longest = max(longest, int(sizes.max()))
    if too_long:
        raise DataError(
            f"{too_long:,} of {sum(finished.pruned_shards.values()):,} samples do not fit into rows of {length:,}",
            f"The longest requires --pack-length {longest}. Exports do not cut samples. For shorter samples, "
            "score again with --max-model-len, with or without --overlong truncate.",
        )


def packed_tables(finished: FinishedOutput, packer: Packer) -> Iterator[pa.Table]:
    """Yield input_ids, loss_mask, seq_start_id: a table of the rows that each shard closes."""
    for table in pruned_tables(finished, ["input_ids", "loss_mask"]):
        closed = [row for sample in _samples(table) if (row := packer.place(sample)) is not None]
        if closed:
            yield _table(closed)
    yield _table(list(packer.rest()))


def _samples(table: pa.Table) -> Iterator[Sample]:
    ids, mask = ragged(table["input_ids"]), ragged(table["loss_mask"])
    shifted = np.append(mask.flat[1:], np.int8(0))
    shifted[mask.offsets[1:] - 1] = 0
    for low, high in zip(ids.offsets[:-1].tolist(), ids.offsets[1:].tolist(), strict=True):
        yield ids.flat[low:high].copy(), shifted[low:high].copy()  # a view would keep the whole shard


def _table(rows: list[list[Sample]]) -> pa.Table:
    sizes = [np.array([len(ids) for ids, _ in row]) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([size.sum() for size in sizes])])
    starts = [np.cumsum(size) - size for size in sizes]
    start_offsets = np.concatenate([[0], np.cumsum([len(start) for start in starts])])
    ids = np.concatenate([ids for row in rows for ids, _ in row])
    masks = np.concatenate([mask for row in rows for _, mask in row])
    return pa.table(
        {
            "input_ids": list_column(ids, offsets, pa.int32()),
            "loss_mask": list_column(masks, offsets, pa.int8()),
            "seq_start_id": list_column(np.concatenate(starts), start_offsets, pa.int32()),
        }
    )


def write_packed(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """Write train-00000.idx.parquet, ...: older versions of Megatron-Bridge require this ending for packed data."""
    for number, table in enumerate(tables):
        uri = file_io.join(folder, f"train-{number:05}.idx.parquet")
        yield file_io.write_table(uri, table, row_group_size=ROW_GROUP_ROWS)
