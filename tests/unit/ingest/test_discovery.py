"""Tests of discovery: what users name, and what is found there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qtune_service.errors import DataError, StorageError
from qtune_service.ingest.discovery import changes, discover
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint
from tests.users import ordinary_user

ROW = b'{"prompt": "a", "completion": "b"}\n'


def test_files_globs_and_folders_are_found_once_in_order(tmp_path: Path) -> None:
    """What is named first comes first, folders are sorted, and naming a file twice changes nothing."""
    for name in ("b.jsonl", "a.jsonl", "sub/c.json", "sub/.hidden.jsonl", "_tmp/d.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW * 2)
    named = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path)]
    names = [Path(file.uri).relative_to(tmp_path).as_posix() for file in discover(named)]
    assert names == ["b.jsonl", "a.jsonl", "sub/c.json"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "compression"),
    [
        ("x.jsonl", ROW * 2, "jsonl", None),
        ("x.json", ROW * 2, "jsonl", None),
        ("x.json", ROW, "json", None),
        ("x.json", b"\xef\xbb\xbf [1]", "json", None),
        ("x.jsonl", b"[\n  {}\n]", "json", None),
        ("x.json", b'{\n "a": 1\n}', "json", None),
        ("noending", ROW * 2, "jsonl", None),
        ("x.jsonl", b"", "jsonl", None),
        ("x.jsonl", b"not json\n", "jsonl", None),
        ("x.jsonl.gz", gzip.compress(ROW * 9000, mtime=0), "jsonl", "gz"),
        ("x.json.gz", gzip.compress(b'{"a": {"0": 1}}\n', mtime=0), "json", "gz"),
        ("x.jsonl.zst", zstandard.compress(ROW), "jsonl", "zst"),
        ("mislabelled.jsonl", gzip.compress(ROW, mtime=0), "jsonl", "gz"),
    ],
)
def test_content_tells_what_a_file_is(
    tmp_path: Path, name: str, content: bytes, kind: str, compression: str | None
) -> None:
    """First bytes decide, and the name where they do not."""
    (tmp_path / name).write_bytes(content)
    (file,) = discover([str(tmp_path / name)])
    assert (file.kind, file.compression, file.size_bytes) == (kind, compression, len(content))


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    """A Parquet file under another name is read as Parquet."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.jsonl")
    assert discover([str(tmp_path / "x.jsonl")])[0].kind == "parquet"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.parquet", ROW, "it is not Parquet"),
        ("x.jsonl", b"PK\x03\x04rest", "a zip archive"),
        ("x.json", "[]".encode("utf-16"), "UTF-16 text"),
        ("x.txt", b"a,b\n1,2\n", "cannot detect the format of .*x.txt"),
        ("x.parquet.gz", gzip.compress(b"PAR1xxxx", mtime=0), "Parquet inside .gz"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """A file that cannot be read is named, with what is supported."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        discover([str(tmp_path / name)])
    assert ".jsonl" in caught.value.hint


def test_nothing_found_names_the_path(tmp_path: Path) -> None:
    """A missing file, a pattern without a match and a folder without data are errors."""
    (tmp_path / "only.txt").write_text("x")
    for path, says in (("none.jsonl", "no such file"), ("*.parquet", "no file matches"), ("", "holds only only.txt")):
        with pytest.raises(DataError, match=says):
            discover([str(tmp_path / path)])


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file without read permission is a StorageError."""
    (tmp_path / "x.jsonl").write_bytes(ROW)
    (tmp_path / "x.jsonl").chmod(0)
    with ordinary_user(), pytest.raises(StorageError, match="permission denied"):
        discover([str(tmp_path / "x.jsonl")])


def test_local_and_s3_mix(tmp_path: Path, s3: S3Endpoint) -> None:
    """Sources of several kinds make one input; folders and patterns work on S3."""
    (tmp_path / "x.jsonl").write_bytes(ROW)
    for name in ("one.jsonl", "two.jsonl", "_logs/no.jsonl"):
        file_io.write_bytes(s3.uri(f"mix/{name}"), ROW)
    found = discover([str(tmp_path / "x.jsonl"), s3.uri("mix"), s3.uri("mix/o*.jsonl")])
    assert [file.name for file in found] == [
        str(tmp_path / "x.jsonl"),
        s3.uri("mix/one.jsonl"),
        s3.uri("mix/two.jsonl"),
    ]


def test_changes_are_told_a_file_each(tmp_path: Path) -> None:
    """A file that changed, went or came is named; the same files are no change."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(ROW)
    before = discover([str(tmp_path)])
    assert changes(before, discover([str(tmp_path)])) == []
    assert changes(before, before[::-1]) == ["the files are named in another order"]
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"other": 1}).encode())
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    told = changes(before, discover([str(tmp_path)]))
    assert told == [f"{tmp_path}/b.jsonl is gone", f"{tmp_path}/c.jsonl is new", f"{tmp_path}/a.jsonl has changed"]
