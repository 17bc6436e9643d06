"""The output folder: what is removed from it, and what its markers tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtune_service.errors import StorageError
from qtune_service.output.layout import Output
from qtune_service.output.removal import drop_strays, drop_working_files
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint


def names(root: str) -> list[str]:
    """Return the names of all files in an output, hidden ones too."""
    return sorted(file_io.relative(uri, root) for uri in file_io.list_files(root))


def write_strays(output: Output) -> None:
    """Two parts, of which one counts, half a write, and a file of the user's."""
    for folder, name in (
        ("scores", "part-00000.parquet"),
        ("scores", "part-00001.parquet"),
        ("scores", ".part-00002.parquet.17-0123abcd.tmp"),
        ("rejected", "part-00000.parquet"),
        ("pruned", "README.md"),
    ):
        file_io.write_bytes(output.at(folder, name), b"x")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_only_what_the_manifest_does_not_list_is_dropped(scheme: str, tmp_path: Path) -> None:
    """Parts that no finished shard owns and half-written ones go; listed parts and foreign files stay."""
    output = Output(f"{scheme}{tmp_path}/./o")
    write_strays(output)
    drop_strays(output, ["scores/part-00000.parquet"])
    assert names(output.root) == ["pruned/README.md", "scores/part-00000.parquet"]


def test_strays_on_an_object_store(s3: S3Endpoint) -> None:
    """The same where the output is a URI with options."""
    output = Output(f"{s3.uri('o')}?endpoint_override={s3.url}")
    write_strays(output)
    output.mark("scored", 7, {"read": 2})
    assert output.finished("scored") == {7: {"read": 2}}
    drop_working_files(output)
    drop_strays(output, ["scores/part-00000.parquet"])
    assert names(output.root) == ["pruned/README.md", "scores/part-00000.parquet"]


def test_half_written_markers_do_not_count(tmp_path: Path) -> None:
    """A crash in the middle of writing a marker or a checkpoint leaves a hidden file, which is no shard."""
    output = Output(str(tmp_path))
    output.mark("scored", 12, {"read": 1})
    file_io.write_bytes(output.partial_uri(3), b"x")
    for name in ("scored/.00013.json.17-ab.tmp", "partial/.00004.arrow.17-ab.tmp"):
        file_io.write_bytes(output.at("_qtune", name), b"{")
    assert output.finished("scored") == {12: {"read": 1}}
    assert output.partials() == {3}


def test_a_damaged_marker_is_named(tmp_path: Path) -> None:
    """Markers are written whole; one that was spoiled by other means is named, not taken for a finished shard."""
    output = Output(str(tmp_path))
    output.mark("scored", 0, {"read": 1})
    file_io.write_bytes(output.at("_qtune", "scored", "00001.json"), b'{"read": ')
    with pytest.raises(StorageError, match=r"scored/00001\.json is not valid JSON") as caught:
        output.finished("scored")
    assert "Remove it" in caught.value.hint
