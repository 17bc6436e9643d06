"""Upload checks (ingest/upload_checks.py): refuse what is no dataset while it streams by, and count bad records."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qtune_service.errors import BadDatasetError
from qtune_service.ingest.upload_checks import MAX_RECORD_BYTES, Checked, check, rows_of_file

ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i} ü漢", "completion": "c" * (i % 50), "tags": [{"a": i}]} for i in range(300)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PARQUET_ROWS = 2000


def parquet() -> bytes:
    """Return a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [f"p{i}" for i in range(PARQUET_ROWS)]}), sink)
    return sink.getvalue().to_pybytes()


def look(tmp_path: Path, name: str, data: bytes, block_bytes: int = 1 << 20) -> Checked:
    """Check a file that arrives in blocks."""
    path = tmp_path / "arriving"

    def blocks() -> Iterator[bytes]:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(data), block_bytes):
                file.write(data[start : start + block_bytes])
                yield data[start : start + block_bytes]

    return check(name, blocks(), path, rows_of_file)


@pytest.mark.parametrize("block_bytes", [7, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("name", "data", "kind", "rows"),
    [
        ("a.jsonl", LINES, "jsonl", 300),
        ("a.ndjson", LINES.rstrip(), "jsonl", 300),
        ("a.json", LINES, "jsonl", 300),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"), "jsonl", 300),
        ("a.jsonl.gz", gzip.compress(LINES[:900], mtime=0) + gzip.compress(LINES[900:], mtime=0), "jsonl", 300),
        ("a.jsonl.zst", zstandard.compress(LINES), "jsonl", 300),
        ("a.json", json.dumps(ROWS, indent=1).encode(), "json", 300),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), "json", 300),
        ("a.json", json.dumps({"prompt": {"0": "a", "1": "b"}}).encode(), "json", 2),
        ("a.parquet", parquet(), "parquet", PARQUET_ROWS),
    ],
)
def test_what_jobs_read_is_let_in(
    tmp_path: Path, name: str, data: bytes, kind: str, rows: int, block_bytes: int
) -> None:
    """Every format, however its bytes are cut, with the number of its records."""
    found = look(tmp_path, name, data, block_bytes)
    assert (found.kind, found.rows, found.first_problem) == (kind, rows, "")
    assert found.num_bad_rows == (None if kind == "parquet" else 0)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b"\n \n", "no records"),
        ("a.json", b"[]", "no records"),
        ("a.jsonl", b"prompt,completion\n" + b"a,b\n" * 100, "none of its first 20 records"),
        ("a.jsonl", b"prompt,completion\na,b\n", "none of its 2 records"),
        ("a.jsonl", bytes(range(256)) * 9000, "none of its"),
        ("a.jsonl", b"[1]\n[2]\n", "an array"),
        ("a.json", json.dumps(ROWS).encode()[:-900], "incomplete"),
        ("a.json", b"<html>", "not JSON"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "ends in the middle"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-9], "ends in the middle"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0) + b"more", "damaged"),
        ("a.jsonl.gz", LINES, "JSON lines, which its suffix does not match"),
        ("a.jsonl", gzip.compress(LINES, mtime=0), "JSON lines in gzip, which its suffix does not match"),
        ("a.jsonl", parquet(), "Parquet, which its suffix does not match"),
        ("a.parquet", LINES, "not Parquet"),
        ("a.parquet", parquet()[:-9], "no Parquet footer"),
        ("a.parquet", b"PAR1", "no Parquet footer"),
        ("a.parquet", b"PAR1" + b"\xff" * 40 + b"\x20\0\0\0PAR1", "footer that cannot be read"),
        ("a.parquet", b"PAR1" + b"x" * 90 + b"\xff\xff\xff\x7fPAR1", "no Parquet footer"),
        ("a.jsonl", b"PK\x03\x04" + bytes(900), "a zip archive"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_no_job_reads_is_refused(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    """With what it is, and what to do."""
    with pytest.raises(BadDatasetError, match=told) as caught:
        look(tmp_path, name, data)
    assert caught.value.hint
    assert str(tmp_path) not in str(caught.value)


def test_bad_records_are_counted(tmp_path: Path) -> None:
    """As a job would reject them one by one; the first is told with its line."""
    data = LINES + b'{"a": \n' + b"[]\n" + LINES + b'"cut o'
    found = look(tmp_path, "a.jsonl", data)
    assert (found.rows, found.num_bad_rows) == (603, 3)
    assert found.first_problem.startswith("line 301: ")


def test_two_records_on_a_line_are_one_bad_record(tmp_path: Path) -> None:
    """Lines are not judged by their neighbours."""
    found = look(tmp_path, "a.jsonl", LINES + b'{"a": 1}, {"b": 2}\n{"c":\n3}\n')
    assert (found.rows, found.num_bad_rows) == (303, 3)


def test_very_long_records_are_let_through(tmp_path: Path) -> None:
    """They are not looked into; the ones around them are."""
    long = json.dumps({"prompt": "x" * (3 * MAX_RECORD_BYTES)}).encode()
    found = look(tmp_path, "a.jsonl", LINES + long + b"\n{\n" + LINES, 1000)
    assert (found.rows, found.num_bad_rows) == (602, 1)
    assert look(tmp_path, "a.json", b"[" + long + b"]") == Checked("json", None, None)


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
@pytest.mark.parametrize("text", [b"\0", b"\n"])
def test_bombs_are_refused_in_little_memory(tmp_path: Path, pack: Any, text: bytes) -> None:
    """An eighth of a GiB in some hundred KiB."""
    data = pack(text * (1 << 27))
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BadDatasetError, match="more than 100 times its size"):
            look(tmp_path, "a.jsonl.gz" if pack is gzip.compress else "a.jsonl.zst", data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 << 20


def test_a_frame_that_wants_a_huge_window_is_refused(tmp_path: Path) -> None:
    """Zstd allocates what a frame asks for."""
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    whole = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = whole.compress(LINES) + whole.flush()
    with pytest.raises(BadDatasetError, match="memory"):
        look(tmp_path, "a.jsonl.zst", data)
