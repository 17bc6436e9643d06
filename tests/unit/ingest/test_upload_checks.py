"""Upload checks (ingest/upload_checks.py): refuse what is no dataset while it streams by, and count bad records."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
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
CSV = b"\xef\xbb\xbfprompt,completion\r\n" + b"".join(b'"p\n%d",c\r\n' % i for i in range(300))
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
PARQUET_ROWS = 2000


def parquet() -> bytes:
    """Return a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [f"p{i}" for i in range(PARQUET_ROWS)]}), sink)
    return sink.getvalue().to_pybytes()


def arrow(new: Any) -> bytes:
    """Return an Arrow stream or file."""
    sink, table = pa.BufferOutputStream(), pa.table({"prompt": [f"p{i}" for i in range(PARQUET_ROWS)]})
    with new(sink, table.schema) as writer:
        writer.write_table(table, 300)
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
        ("a.arrow", arrow(pa.ipc.new_stream), "arrow", PARQUET_ROWS),
        ("a.feather", arrow(pa.ipc.new_file), "arrow", PARQUET_ROWS),
        ("a.jsonl.bz2", bz2.compress(LINES[:900]) + bz2.compress(LINES[900:]), "jsonl", 300),
        ("a.json.xz", lzma.compress(json.dumps(ROWS).encode()), "json", 300),
        ("a.csv", CSV, "csv", 300),
        ("a.tsv.gz", gzip.compress(CSV.replace(b",", b"\t"), mtime=0), "csv", 300),
        ("a.json", json.dumps({"version": 1, "data": ROWS}).encode(), "json", 300),
        ("a.json", json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}).encode(), "json", 2),
        ("a.json", json.dumps(TURNS).encode(), "json", 1),
        ("a.jsonl", (json.dumps(TURNS) + "\n").encode() * 3, "jsonl", 3),
        ("a.jsonl", b"".join(json.dumps(row, indent=1).encode() + b"\n" for row in ROWS), "json", 300),
    ],
)
def test_what_jobs_read_is_let_in(
    tmp_path: Path, name: str, data: bytes, kind: str, rows: int, block_bytes: int
) -> None:
    """Every format, however its bytes are cut, with the number of its records."""
    found = look(tmp_path, name, data, block_bytes)
    assert (found.kind, found.rows, found.first_problem) == (kind, rows, "")
    assert found.num_bad_rows == (None if kind in ("parquet", "arrow") else 0)


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
        ("a.arrow", arrow(pa.ipc.new_file)[:-9], "truncated: it has no footer"),
        ("a.arrow", arrow(pa.ipc.new_stream)[:-900], "truncated: it ends inside of record batch"),
        ("a.arrow", b"\xff" * 4 + b"\x10\0\0\0" + b"\xff" * 90, "not a readable Arrow file"),
        ("a.arrow", b"ARROW1\0\0" + b"\xff" * 90 + b"\x10\0\0\0ARROW1", "not a readable Arrow file"),
        ("a.parquet", arrow(pa.ipc.new_file), "Arrow, which its suffix does not match"),
        ("a.jsonl", CSV, "none of its first 20 records"),
        ("a.csv", LINES, "JSON lines, which its suffix does not match"),
        ("a.csv", b"prompt,completion\n", "no records"),
        ("a.csv", b"p,p\na,b\n", "several columns named 'p'"),
        ("a.csv", b"p,c\n" + b"a\n" * 100, "none of its first 20 records"),
        ("a.csv.bz2", bz2.compress(CSV)[:-9], "ends in the middle"),
        ("a.csv.xz", lzma.compress(CSV)[:-30], "ends in the middle"),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}).encode(), "several lists of records: 'train' and 'test'"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
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


def test_bad_rows_of_csv_are_counted(tmp_path: Path) -> None:
    """As a job would reject them; the first is reported with its line."""
    found = look(tmp_path, "a.csv", CSV + b"a,b,c\r\n" + CSV.partition(b"\n")[2] + b'"cut o', 1000)
    assert (found.rows, found.num_bad_rows) == (602, 2)
    assert found.first_problem == "line 602: the row has 3 cells, and the header has 2"


def test_very_long_rows_of_csv_are_let_through(tmp_path: Path) -> None:
    """As long records of JSON are."""
    found = look(tmp_path, "a.csv", CSV + b"a," + b"x" * (3 * MAX_RECORD_BYTES) + b"\r\n", 1000)
    assert found == Checked("csv", None, None)


def test_a_large_wrapped_list_is_checked_as_a_stream(tmp_path: Path) -> None:
    """Its records are counted, not held."""
    rows = [{"prompt": "p" * 1000, "completion": "c"}] * 5000
    assert look(tmp_path, "a.json", json.dumps({"data": rows}).encode()) == Checked("json", 5000, 0)


PACKERS: dict[str, Any] = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("text", [b"\0", b"\n"])
def test_bombs_are_refused_in_little_memory(tmp_path: Path, pack: str, text: bytes) -> None:
    """An eighth of a GiB in some hundred KiB."""
    data = PACKERS[pack](text * (1 << 27))
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BadDatasetError, match="more than 100 times its size"):
            look(tmp_path, f"a.jsonl.{pack}", data)
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
