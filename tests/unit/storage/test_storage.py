"""Tests of the byte I/O: one behaviour on a local disk, on S3 and on an fsspec filesystem."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from qtune_service.errors import StorageError
from qtune_service.storage import file_io, filesystems, folder_io
from qtune_service.storage.confined import Root
from tests.s3 import S3Endpoint
from tests.users import ordinary_user


def read_parquet(uri: str) -> pa.Table:
    """Read a whole file."""
    with file_io.open_parquet(uri) as file:
        return file.read()


@pytest.fixture(params=["local", "file", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty folder on each kind of filesystem."""
    if request.param == "local":
        return str(tmp_path)
    if request.param == "file":
        return f"file://{tmp_path}"
    if request.param == "memory":
        return f"memory://{tmp_path}"
    endpoint: S3Endpoint = request.getfixturevalue("s3")
    return endpoint.uri(f"storage/{tmp_path.name}")


def test_what_is_written_is_read_back_everywhere(root: str) -> None:
    """Bytes, ranges of them, JSON and tables survive; sizes and digests are those of the content."""
    body = bytes(range(256)) * 50_000
    written = file_io.write_bytes(file_io.join(root, "a", "body.bin"), body)
    assert written.size_bytes == len(body)
    assert written.sha256 == hashlib.sha256(body).hexdigest()
    assert file_io.read_bytes(written.uri) == body
    assert file_io.read_range(written.uri, 1000, 9_000_000) == body[1000:9_000_000]
    assert file_io.read_range(written.uri, len(body) - 3, len(body) + 10) == body[-3:]
    file_io.write_json(file_io.join(root, "x.json"), {"grün": [1, None]})
    assert file_io.read_json(file_io.join(root, "x.json")) == {"grün": [1, None]}
    table = pa.table({"n": [1, 2, 3]})
    file_io.write_table(file_io.join(root, "t.parquet"), table)
    assert read_parquet(file_io.join(root, "t.parquet")).equals(table)


def test_a_stream_becomes_one_file(root: str) -> None:
    """Chunks are written one behind the other; where they break off, the file is as it was."""
    uri = file_io.join(root, "folder", "stream")
    chunks = [b"one\n", b"", b"x" * 3_000_000, b"end"]
    written = file_io.write_chunks(uri, iter(chunks))
    body = b"".join(chunks)
    assert file_io.read_bytes(uri) == body
    assert (written.size_bytes, written.sha256) == (len(body), hashlib.sha256(body).hexdigest())

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        file_io.write_chunks(uri, broken())
    assert file_io.read_bytes(uri) == body
    assert file_io.write_chunks(uri, iter(())).size_bytes == 0
    assert file_io.read_bytes(uri) == b""
    assert len(file_io.list_files(file_io.join(root, "folder"))) == 1, "nothing half-written is left"


def test_writing_again_replaces(root: str) -> None:
    """A second write of a name wins, and its version differs from the first."""
    uri = file_io.join(root, "twice")
    file_io.write_bytes(uri, b"first")
    before = file_io.stat(uri)
    time.sleep(0.01)
    file_io.write_bytes(uri, b"other")
    after = file_io.stat(uri)
    assert file_io.read_bytes(uri) == b"other"
    assert before is not None
    assert after is not None
    if not root.startswith("memory"):  # that filesystem keeps no time of change
        assert before.version != after.version
    assert after.size_bytes == 5


def test_listing_globbing_and_removing(root: str) -> None:
    """Listings are sorted and name each file so that it can be opened again."""
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "sub/deep/d.json"):
        file_io.write_bytes(file_io.join(root, name), name.encode())
    found = file_io.list_files(root)
    assert [file_io.relative(uri, root) for uri in found] == ["a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/deep/d.json"]
    assert [file_io.read_bytes(uri) for uri in found][2] == b"sub/c.jsonl"
    assert len(file_io.list_files(root, recursive=False)) == 2

    def globbed(pattern: str) -> list[str]:
        return [file_io.relative(uri, root) for uri in file_io.glob(file_io.join(root, pattern))]

    assert globbed("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert globbed("[!a].jsonl") == ["b.jsonl"]
    assert globbed("**/*.jsonl") == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert globbed("*/c.jsonl") == ["sub/c.jsonl"]
    assert file_io.is_folder(root)
    file_io.remove_file(found[0])
    assert not file_io.exists(found[0])


def test_links_and_copies_hold_the_content(root: str, tmp_path: Path) -> None:
    """A second name of a file outlives the first, also across filesystems."""
    source, second, local = file_io.join(root, "a"), file_io.join(root, "b"), str(tmp_path / "out")
    file_io.write_bytes(file_io.join(source, "x", "one"), b"content")
    file_io.write_bytes(file_io.join(second, "x", "one"), b"old")
    folder_io.link_or_copy(Root(source), Root(second), "x/one")
    folder_io.link_or_copy(Root(source), Root(local), "x/one")
    folder_io.link_or_copy(Root(local), Root(file_io.join(root, "c")), "x/one")
    file_io.remove_file(file_io.join(source, "x", "one"))
    for folder in (second, local, file_io.join(root, "c")):
        assert file_io.read_bytes(file_io.join(folder, "x", "one")) == b"content"


def test_what_is_missing_is_named(root: str) -> None:
    """A missing file is no file to `stat` and an error with its name to a reader."""
    uri = file_io.join(root, "none.txt")
    assert file_io.stat(uri) is None
    assert not file_io.exists(uri)
    with pytest.raises(StorageError, match=r"cannot read .*none.txt: it does not exist"):
        file_io.read_bytes(uri)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """JSON that is none and Parquet that is none say which file it was."""
    (tmp_path / "x").write_text("{")
    with pytest.raises(StorageError, match="x is not valid JSON"):
        file_io.read_json(str(tmp_path / "x"))
    with pytest.raises(StorageError, match="x is not a readable Parquet file"):
        read_parquet(str(tmp_path / "x"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """When the bytes do not fit, the old file stays, no temporary one does, and the error says what to do."""
    target = tmp_path / "out" / "file"
    file_io.write_bytes(str(target), b"old")
    code = (
        "import resource, signal, sys\n"
        "from qtune_service.storage import file_io\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "file_io.write_bytes(sys.argv[1], bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"StorageError: cannot write {target}: the file size limit is reached" in done.stderr
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    """Others may read an output as they may any new file."""
    file_io.write_bytes(str(tmp_path / "ours"), b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is exceeded"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (OSError("AWS Error ACCESS_DENIED during PutObject operation: no"), "access denied"),
        (OSError("something else\nwith details"), "something else"),
    ],
)
def test_failures_say_what_where_and_what_to_do(error: OSError, says: str) -> None:
    """Every kind of failure has its sentence and its advice."""
    told = filesystems.explain(error, "s3://b/k?region=x", "write")
    assert told.message.startswith(f"cannot write s3://b/k: {says}")
    assert told.hint


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A file without read permission is a StorageError that names it."""
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    with ordinary_user(), pytest.raises(StorageError, match=r"cannot read .*secret: permission denied"):
        file_io.read_bytes(str(path))


def test_a_missing_bucket_is_named(s3: S3Endpoint) -> None:
    """Writing into a bucket that is not there says so."""
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket/x: the bucket does not exist"):
        file_io.write_bytes("s3://no-such-bucket/x", b"1")


def test_an_unreachable_endpoint_is_an_error_in_seconds() -> None:
    """An endpoint where nobody listens is retried a few times, then named with what to check."""
    started = time.monotonic()
    with pytest.raises(StorageError, match="the endpoint cannot be reached") as caught:
        file_io.read_bytes("s3://bucket/key?endpoint_override=http://127.0.0.1:9&region=us-east-1")
    assert time.monotonic() - started < 30
    assert "AWS_ENDPOINT_URL" in caught.value.hint


def test_an_endpoint_may_be_part_of_the_uri(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """`?endpoint_override=` leads to a server that the environment does not name, and survives listing."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    root = f"s3://{s3.bucket}/by-uri?endpoint_override={s3.url}"
    file_io.write_bytes(file_io.join(root, "k"), b"v")
    listed = file_io.list_files(root)
    assert listed == [f"s3://{s3.bucket}/by-uri/k?endpoint_override={s3.url}"]
    assert file_io.read_bytes(listed[0]) == b"v"
    assert file_io.display(listed[0]) == f"s3://{s3.bucket}/by-uri/k"
    assert s3.client().get_object(Bucket=s3.bucket, Key="by-uri/k")["Body"].read() == b"v"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://key:secret@bucket/x", "a URI is s3://BUCKET/KEY"),
        ("s3://bucket/x?secret_key=abc", "unknown option secret_key"),
        ("nosuch://x/y", "nosuch"),
    ],
)
def test_uris_that_cannot_be_used_are_refused(uri: str, says: str) -> None:
    """Unknown schemes and options, and credentials in a URI, are refused without repeating a secret."""
    with pytest.raises(StorageError, match=says) as caught:
        file_io.resolve(uri)
    assert "key:secret" not in str(caught.value)


def failing(times: int) -> Iterator[bool]:
    """Fail so many times, then succeed."""
    for _ in range(times):
        yield False
    while True:
        yield True


def test_failures_that_pass_are_retried_and_others_are_not() -> None:
    """Two throttled calls are followed by a third; a denied call by none."""

    def call(error: OSError, outcomes: Iterator[bool], calls: list[int]) -> str:
        calls.append(1)
        if not next(outcomes):
            raise error
        return "done"

    slow, denied = OSError("AWS Error SLOW_DOWN during GetObject"), OSError("AWS Error ACCESS_DENIED during GetObject")
    calls: list[int] = []
    outcomes = failing(2)
    assert filesystems.retrying("s3://b/k", "read", lambda: call(slow, outcomes, calls)) == "done"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(StorageError, match="access denied"):
        filesystems.retrying("s3://b/k", "read", lambda: call(denied, failing(1), calls))
    assert len(calls) == 1
