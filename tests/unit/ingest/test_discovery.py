"""Tests of discovery: what users name, and what is found there."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import random
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
        ("x.jsonl.bz2", bz2.compress(ROW * 9000), "jsonl", "bz2"),
        ("x.jsonl.bz2", bz2.compress(random.Random(0).randbytes(800_000).hex().encode()), "jsonl", "bz2"),
        ("x.json.xz", lzma.compress(b"[{}]"), "json", "xz"),
        ("x.csv", b"a,b\n1,2\n", "csv", None),
        ("x.CSV", b"", "csv", None),
        ("x.tsv.gz", gzip.compress(b"a\tb\n", mtime=0), "csv", "gz"),
        ("x.csv", ROW * 2, "jsonl", None),
        ("x.csv", b'[{"prompt": "a", "completion": "b"}]', "json", None),
        ("x.csv", b"[a],{b}\n1,2\n", "csv", None),
        ("x.jsonl", b'{\n  "a": 1\n}\n', "json", None),
        ("x.jsonl", b'{\n  "a": 1\n}\n{\n  "a": 2\n}\n', "json", None),
        ("x.jsonl", b'{\n "a": "' + b"x" * 70_000 + b'"\n}', "json", None),
        ("x.jsonl", b"{\n" + ROW * 2, "jsonl", None),
        ("x.jsonl", b'{"a": [\n' + ROW * 2, "jsonl", None),
        ("x.jsonl", b'{"a": "' + b"x" * 70_000 + b'"}\n', "jsonl", None),
        ("x.jsonl", b'[{"role": "user"}]\n[{"role": "user"}]\n', "jsonl", None),
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
        ("x.xlsx", b"PK\x03\x04" + bytes(22) + b"\x13\0\0\0[Content_Types].xml", "an Excel workbook"),
        ("x.npz", b"PK\x03\x04" + bytes(22) + b"\x05\0\0\0a.npy", "a NumPy archive"),
        ("x.pkl", pickle.dumps([{"a": 1}]), "a Python pickle"),
        ("x.pkl", pickle.dumps({"a": 1}, 2), "a Python pickle"),
        ("x.safetensors", b"\x40" + bytes(7) + b'{"a":{"dtype":"F32"}}', r"the weights of a model \(safetensors\)"),
        ("x.feather", b"FEA1" + bytes(60), "a Feather file of version 1"),
        ("x.arrow", ROW, "it is not Arrow"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("x.json", b"\n<!DOCTYPE html>\n<html>", "an HTML page"),
        ("x.tar.gz", gzip.compress(b"a" * 257 + b"ustar\0", mtime=0), "a tar archive"),
        ("x.json", '[{"a": 1}]'.encode("utf-16-le"), "UTF-16 text"),
        ("x.arrow.gz", gzip.compress(b"ARROW1\0\0", mtime=0), "Arrow inside .gz"),
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
