"""storage/confined.py and storage/folder_io.py: no generated path leads out of a folder, whatever is in the folder."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from qtune_service.errors import DamagedFileError, OutputConflictError, StorageError
from qtune_service.output.layout import Output, part_files, part_path
from qtune_service.storage import folder_io
from qtune_service.storage.confined import MAX_SEGMENTS, Root, is_really_below, segments

SECRET = b"the secret"
PIECES: tuple[str, ...] = (
    "..",
    ".",
    "",
    "a",
    "part-00000.parquet",
    "link",
    "up",
    "~",
    "%2e%2e",
    "%2f",
    "..%2f",
    "...",
    ". .",
    "{",
    "}",
)
PIECES += ("\\..", "a\\b", "\0", "\n", "*", "?", "#", "\u2024\u2024", "\uff0e\uff0e", "x" * 300, "dev", "file:", "s3:")
paths = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("/".join)
quickly = hypothesis.settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Return a folder with a good file, and with every kind of path that could lead out of it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "part-00000.parquet").write_bytes(SECRET)
    (tmp_path / "part-00000.parquet").write_bytes(SECRET)
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "part-00000.parquet").write_bytes(b"good")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    (root / "a" / "link").symlink_to(tmp_path / "secret" / "part-00000.parquet")
    (root / "a" / "up").symlink_to("../..")
    (root / "zero").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo")
    return root


@quickly
@hypothesis.given(path=paths)
@hypothesis.example(path="a/part-00000.parquet")
@hypothesis.example(path="a/link")
@hypothesis.example(path="up/part-00000.parquet")
@hypothesis.example(path="a/../../part-00000.parquet")
@hypothesis.example(path="/etc/passwd")
@hypothesis.example(path="zero")
@hypothesis.example(path="fifo")
def test_nothing_outside_is_read(trap: Path, path: str) -> None:
    """Every path gives the good file or an error of ours; never another file, and never another exception."""
    root = Root(str(trap))
    try:
        found = folder_io.read_bytes(root, path, max_bytes=1000)
    except (OutputConflictError, StorageError):
        return
    assert (found, segments(path)) == (b"good", ("a", "part-00000.parquet"))


@quickly
@hypothesis.given(path=paths)
@hypothesis.example(path="a/link")
@hypothesis.example(path="link/part-00000.parquet")
@hypothesis.example(path="up/part-00000.parquet")
def test_nothing_outside_is_removed(trap: Path, path: str) -> None:
    """What is removed is the file or the link itself, never what a link leads to."""
    try:
        folder_io.remove_file(Root(str(trap)), path)
        folder_io.remove_folder_if_empty(Root(str(trap)), path)
    except (OutputConflictError, StorageError):
        pass
    assert (trap.parent / "part-00000.parquet").read_bytes() == SECRET
    assert (trap.parent / "secret" / "part-00000.parquet").read_bytes() == SECRET


@quickly
@hypothesis.given(path=paths)
def test_shapes(path: str) -> None:
    """A path that passes stays below any root as text too, on object stores and in URIs."""
    try:
        found = segments(path)
    except OutputConflictError:
        return
    assert 0 < len(found) <= MAX_SEGMENTS
    assert os.path.normpath("/".join(found)) == "/".join(found) == path
    assert not set("".join(found)) & set("\\\0\n?#%*")


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "loop", "fifo", "device", "folder", "socket"])
def test_kinds_of_files(tmp_path: Path, kind: str) -> None:
    """Only a regular file is opened; nothing blocks, and no device is touched."""
    root, at = tmp_path / "root", tmp_path / "root" / "x"
    root.mkdir()
    (tmp_path / "secret").write_bytes(SECRET)
    if kind == "link to a file":
        at.symlink_to(tmp_path / "secret")
    elif kind == "link to a folder":
        at.symlink_to(tmp_path)
    elif kind == "loop":
        at.symlink_to(at)
    elif kind == "fifo":
        os.mkfifo(at)
    elif kind == "device":
        at.symlink_to("/dev/zero")
    elif kind == "folder":
        at.mkdir()
    else:
        import socket

        socket.socket(socket.AF_UNIX).bind(str(at))
    for path in ("x", "x/secret"):
        with pytest.raises((OutputConflictError, StorageError)) as caught:
            folder_io.read_bytes(Root(str(root)), path, max_bytes=100)
        assert SECRET.decode() not in str(caught.value)
    assert folder_io.list_files(Root(str(root))) in ([], ["x"])


def test_the_root_as_a_link(tmp_path: Path) -> None:
    """A person may name an output by a link; a server does not follow one that its outputs' writers have made."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "manifest.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Output(str(tmp_path / "link")).manifest == {}
    with pytest.raises(OutputConflictError, match="not inside it"):
        _ = Output(str(tmp_path / "link"), may_be_link=False).manifest


def test_sizes_and_damage(tmp_path: Path) -> None:
    """A file that is too large is not read; JSON that is none, or nested without end, is named as damaged."""
    (tmp_path / "large.json").write_bytes(b" " * 2000)
    with pytest.raises(OutputConflictError, match="2,000 bytes"):
        folder_io.read_json(Root(str(tmp_path)), "large.json", max_bytes=1000)
    for body in (b"[" * 100_000, b'{"a":', b"\xff", b""):
        (tmp_path / "bad.json").write_bytes(body)
        with pytest.raises(DamagedFileError, match=r"bad\.json is not valid JSON"):
            folder_io.read_json(Root(str(tmp_path)), "bad.json", max_bytes=1 << 20)


GOOD: dict[str, Any] = {"path": "scores/part-00000.parquet", "bytes": 1, "sha256": "0" * 64, "rows": 1}
wrong_paths = paths | st.sampled_from(
    [
        "scores/../../../x",
        "/etc/passwd",
        "scores/part-0.parquet",
        "scores/part-00000.parquet/x",
        "manifest.json",
        "other/part-00000.parquet",
        "scores/part-00000.parquet\n",
        "SCORES/part-00000.parquet",
        "scores//part-00000.parquet",
        "./scores/part-00000.parquet",
        "scores/part-\u0660\u0660\u0660\u0660\u0660.parquet",
        "scores\\part-00000.parquet",
        "scores/part-000000.parquet",
        "scores/part-00000-0000000.parquet",
        "scores/part-00000-00000001.parquet",
        "scores/part-00000-.parquet",
    ]
)


@quickly
@hypothesis.given(path=wrong_paths | st.none() | st.integers() | st.lists(st.text()))
def test_paths_of_manifests(path: Any) -> None:
    """A manifest lists files of shards and nothing else."""
    with pytest.raises(OutputConflictError, match="manifest is not valid"):
        part_files({"files": [GOOD, {**GOOD, "path": path}]})


@pytest.mark.parametrize(
    "change", [{"bytes": -1}, {"bytes": "1"}, {"bytes": 1.5}, {"sha256": 'a"\r\nX: y'}, {"sha256": ""}, {"rows": None}]
)
def test_figures_of_manifests(change: dict[str, Any]) -> None:
    """What would go into headers and sums is of its kind."""
    with pytest.raises(OutputConflictError, match=next(iter(change))):
        part_files({"files": [{**GOOD, **change}]})


def test_what_a_manifest_may_list() -> None:
    """All four folders, and any number of shards."""
    for folder in ("scores", "quadrants", "pruned", "rejected"):
        for shard in (0, 7, 99_999, 100_000, 123_456_789):
            for path in (part_path(folder, shard), part_path(folder, shard, GOOD["sha256"])):
                (found,) = part_files({"files": [{**GOOD, "path": path}]})
                assert (found.folder, found.shard, found.to_dict()["path"]) == (folder, shard, path)


@quickly
@hypothesis.given(name=st.text(alphabet=string.printable, max_size=30))
def test_below(tmp_path: Path, name: str) -> None:
    """Whatever is asked, the answer is what the file system's own resolution says, and no exception."""
    (tmp_path / "in").mkdir(exist_ok=True)
    asked = tmp_path / "in" / name
    try:
        expected = asked.resolve().is_relative_to((tmp_path / "in").resolve())
    except (OSError, ValueError, RuntimeError):
        expected = False
    assert is_really_below(asked, (str(tmp_path / "in"),)) is expected
