"""Tables to files: Parquet, JSON lines, and the folder that `datasets.load_from_disk` opens.

A file at a time is in memory. Names begin with `train`, by which loaders know the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa

from qtune_service.export import json_text
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

BATCH_ROWS = 1_000
"""Rows of a batch in an Arrow file: what a random access has to look through."""


class Writer(Protocol):
    """Writes tables as files of a folder."""

    def __call__(self, folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        """A file a table; yields each when it is there."""
        ...


def write_parquet(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """train-00000.parquet, ..."""
    for number, table in enumerate(tables):
        yield file_io.write_table(file_io.join(folder, f"train-{number:05}.parquet"), table)


def write_jsonl(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """train-00000.jsonl, ...: an object a line."""
    for number, table in enumerate(tables):
        lines = (json_text.encode(row) + b"\n" for row in json_text.rows_of(table))
        yield file_io.write_chunks(file_io.join(folder, f"train-{number:05}.jsonl"), lines)


def write_lines(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """train-00000.jsonl, ... of tables whose column `json` holds an object's text a row."""
    for number, table in enumerate(tables):
        texts: list[bytes] = table["json"].to_pylist()  # type: ignore[assignment]  # none is missing
        lines = (text + b"\n" for text in texts)
        yield file_io.write_chunks(file_io.join(folder, f"train-{number:05}.jsonl"), lines)


def write_saved_dataset(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
    """What `Dataset.save_to_disk` writes: Arrow streams, and two small files that name them, the last one last.

    The features are left to the Arrow schema, which every version of datasets reads the same.
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
