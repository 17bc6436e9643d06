"""Writers of tables: Parquet, JSON lines, and the folder that `datasets.load_from_disk` opens.

Kept samples are a stream of Arrow tables, cut to files of a requested size. One file is in memory at a time, or one
shard if that is larger. File names begin with `train`, from which loaders take the split.

In JSON, numbers that JSON lacks (NaN, infinities) become null, bytes base64, and values of other types text. orjson
writes lists of tokens directly from numpy. The standard library writes the few values that orjson refuses (integers
beyond 64 bits).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa

from qtune_service.ingest.rows import records_of
from qtune_service.ingest.schema import as_json_type
from qtune_service.output.columns import ragged
from qtune_service.output.reader import FinishedOutput
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

BATCH_ROWS = 1_000
"""Rows of a batch in an Arrow file: a random access reads one batch."""


def encode(value: Any) -> bytes:
    """Return a value as JSON on one line."""
    try:
        return orjson.dumps(value, default=_foreign, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes a JSON escape


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _plain(value: Any) -> Any:
    """Convert a value to types that the standard library can write."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else _foreign(value)


def array(values: Iterable[Any]) -> Iterator[bytes]:
    """Yield a JSON array as a stream, an element a line."""
    mark = b"["
    for value in values:
        yield mark + b"\n" + encode(value)
        mark = b","
    yield b"[]" if mark == b"[" else b"\n]"


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as records of plain data (see `records_of`). Lists of tokens stay numpy."""
    tokens = {name for name in table.column_names if _is_flat(table[name])}
    others = table.select([name for name in table.column_names if name not in tokens])
    lists = {name: ragged(table[name]).rows() for name in tokens}
    plain = records_of(others)
    for i, row in enumerate(plain):
        yield {n: lists[n][i] if n in tokens else row[n] for n in table.column_names if n in tokens or n in row}


def _is_flat(column: Any) -> bool:
    """Return whether a column holds lists of integers or booleans without missing values."""
    of = column.type
    if not pa.types.is_list(of) or column.null_count:
        return False
    is_simple = pa.types.is_integer(of.value_type) or pa.types.is_boolean(of.value_type)
    return is_simple and all(chunk.flatten().null_count == 0 for chunk in column.chunks)


def pruned_tables(finished: FinishedOutput, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the tables of pruned/, shard by shard in order, with Arrow's JSON type in outputs of any version."""
    for shard in finished.pruned_shards:
        yield as_json_type(finished.pruned(shard, columns))


def resized(tables: Iterable[pa.Table], num_rows: int | None) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `num_rows`, the last one shorter. None: as they are, without empty ones."""
    if num_rows is None:
        yield from (table for table in tables if table.num_rows)
        return
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        while sum(part.num_rows for part in pending) >= num_rows:
            joined = pa.concat_tables(pending)
            yield joined.slice(0, num_rows)
            pending = [joined.slice(num_rows)]
    rest = pa.concat_tables(pending) if pending else None
    if rest is not None and rest.num_rows:
        yield rest


class Writer(Protocol):
    """A function that writes tables as files of a folder."""

    def __call__(self, folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        """Write a file for each table. Yield each file after it is written."""
        ...


def write_parquet(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """Write train-00000.parquet, ..."""
    for number, table in enumerate(tables):
        yield file_io.write_table(file_io.join(folder, f"train-{number:05}.parquet"), table)


def write_jsonl(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """Write train-00000.jsonl, ... with an object a line."""
    for number, table in enumerate(tables):
        lines = (encode(row) + b"\n" for row in rows_of(table))
        yield file_io.write_chunks(file_io.join(folder, f"train-{number:05}.jsonl"), lines)


def write_lines(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """Write train-00000.jsonl, ... of tables with the text of an object in column `json`."""
    for number, table in enumerate(tables):
        texts: list[bytes] = table["json"].to_pylist()  # type: ignore[assignment]  # no value is missing
        lines = (text + b"\n" for text in texts)
        yield file_io.write_chunks(file_io.join(folder, f"train-{number:05}.jsonl"), lines)


def write_saved_dataset(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """Write the files of `Dataset.save_to_disk`: Arrow streams, and two small files that name them, the last one last.

    The features are taken from the Arrow schema, which every version of datasets reads the same way.
    """
    files = []
    for number, table in enumerate(tables):
        name = f"data-{number:05}.arrow"
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=BATCH_ROWS)
        files.append((name, file_io.write_bytes(file_io.join(folder, name), sink.getvalue())))
        yield files[-1][1]
    info = {"citation": "", "description": "", "features": None, "homepage": "", "license": ""}
    yield file_io.write_json(file_io.join(folder, "dataset_info.json"), info)
    digest = hashlib.sha256("".join(file.sha256 for _, file in files).encode()).hexdigest()
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name, _ in files],
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    yield file_io.write_json(file_io.join(folder, "state.json"), state)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an export."""

    rows_per_file: int | None = None
    """None: one file for each shard."""
    pack_length: int | None = None
    """Tokens of a packed row."""
    license: str | None = None
    """License of the dataset, by the hub's names."""
    repository: str | None = None
    """Name of the dataset on the hub, for its card."""
    max_samples: int = 10_000
    """Limit on the scored samples of analysis files, which are large."""


@dataclass(slots=True)
class Export:
    """An export in progress: the output, the folder, the options, and the result."""

    finished: FinishedOutput
    folder: str
    options: Options
    num_rows: int = 0
    num_bytes: int = 0
    """Size of the rows in Arrow."""
    notes: list[str] = field(default_factory=list)
    """Notes on the result for the user."""

    def write(self, writer: Writer, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        """Write tables as files of the requested size, and count their rows."""
        return writer(self.folder, self._counted(resized(tables, self.options.rows_per_file)))

    def _counted(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.num_rows += table.num_rows
            self.num_bytes += table.nbytes
            yield table
