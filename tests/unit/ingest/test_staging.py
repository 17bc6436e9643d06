"""Tests of files that cannot be read from the middle: arrays, objects of columns, compressed files."""

from __future__ import annotations

import bz2 as bzip2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from qtune_service.ingest import json_reader
from qtune_service.ingest.jsonl import RecordProblem
from tests.unit.ingest.planning import columns_of, plan_of, read_all, records_of

ROWS: list[dict[str, Any]] = [
    {"prompt": f'p{i} ü漢\n\t"[{{,', "completion": "c" * (i % 50), "n": i / 3, "tags": [{"a": [i]}]} for i in range(500)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def gz(data: bytes) -> bytes:
    return gzip.compress(data)


def zst(data: bytes) -> bytes:
    return zstandard.compress(data)


def bz2(data: bytes) -> bytes:
    return bzip2.compress(data)


def xz(data: bytes) -> bytes:
    return lzma.compress(data)


PACKS = [gz, zst, bz2, xz]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("window", [1 << 20, 7])
@pytest.mark.parametrize("pack", [bytes, *PACKS])
def test_arrays_are_read_record_by_record(
    tmp_path: Path, indent: int | None, window: int, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compact or pretty, compressed or not, however the window cuts: all elements, numbered from 1."""
    monkeypatch.setattr(json_reader, "_WINDOW_CHARS", window)
    path = tmp_path / "x.json"
    path.write_bytes(pack(json.dumps(ROWS, indent=indent, ensure_ascii=False).encode()))
    plan = plan_of(tmp_path / "work", path, shard_bytes=4096)
    assert records_of(plan) == columns_of(plan) == ROWS
    assert [line for shard in read_all(plan) for line in shard.lines] == list(range(1, 501))
    assert len(plan.shards) > 5 or pack is not bytes


@pytest.mark.parametrize("pack", PACKS)
def test_compressed_lines_keep_their_numbers(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Blank and bad lines count; members and frames after one another are one file."""
    path = tmp_path / "x.jsonl.any"
    path.write_bytes(pack(LINES + b"\n") + pack(b"{bad\n") + pack(LINES[:-1]))
    plan = plan_of(tmp_path, path, shard_bytes=8192)
    assert records_of(plan) == [*ROWS, ("bad_json", 502), *ROWS]


@pytest.mark.parametrize("pack", PACKS)
def test_a_truncated_stream_keeps_what_came_before(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Whole records before the break are good; the break is one rejected record that says where."""
    numbers, count = random.Random(0), 80_000 if pack is bz2 else 20_000
    rows = [{"prompt": f"{numbers.random()}", "completion": "c"} for _ in range(count)]
    packed = pack("".join(json.dumps(row) + "\n" for row in rows).encode())
    path = tmp_path / f"x.jsonl.{pack.__name__}"
    path.write_bytes(packed[: len(packed) * 3 // 4 if pack is bz2 else len(packed) // 2])
    shards = read_all(plan_of(tmp_path, path, shard_bytes=20_000))
    records = [record for shard in shards for record in shard.records]
    good, broken = records[:-1], records[-1]
    assert 0 < len(good) < count
    assert good == rows[: len(good)]
    assert "ends in the middle, at byte" in getattr(broken, "detail", "")
    assert shards[-1].lines[-1] == len(records)
    if pack in (gz, xz):  # these give out all that came; a block of zstd or bzip2 only as a whole
        assert len(good) > 9000


@pytest.mark.parametrize("pack", [bz2, xz])
def test_a_stream_that_is_damaged_in_the_middle(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Most of the records before the damage are good, and the damage is one rejected record."""
    numbers, count = random.Random(1), 80_000
    rows = [{"prompt": f"{numbers.random()}", "completion": "c"} for _ in range(count)]
    packed = bytearray(pack("".join(json.dumps(row) + "\n" for row in rows).encode()))
    at = len(packed) * 3 // 4
    packed[at : at + 64] = b"\xff" * 64
    (tmp_path / "x.jsonl.packed").write_bytes(packed)
    records = records_of(plan_of(tmp_path, tmp_path / "x.jsonl.packed"))
    good = [record for record in records if isinstance(record, dict)]
    assert len(good) > count // 4
    assert good[: count // 4] == rows[: count // 4]
    assert records[-1] == ("bad_json", len(records))


def test_a_damaged_stream_keeps_what_came_before(tmp_path: Path) -> None:
    """A wrong checksum or foreign bytes after the stream are one rejected record."""
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1
    for name, data in (("crc.jsonl", bytes(packed)), ("tail.jsonl", gzip.compress(LINES) + b"garbage")):
        (tmp_path / name).write_bytes(data)
        assert records_of(plan_of(tmp_path / name[:3], tmp_path / name)) == [*ROWS, ("bad_json", 501)]


def test_padding_after_a_stream_is_nothing(tmp_path: Path) -> None:
    """Zero bytes behind a gzip member, as tapes leave them, are no break."""
    (tmp_path / "x.gz").write_bytes(gzip.compress(LINES) + bytes(512))
    assert records_of(plan_of(tmp_path, tmp_path / "x.gz")) == ROWS


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b'{"prompt": "p", "completion', "the text ends in the middle"),
        (b'{"prompt": "p"} {"prompt": "q"}]', "expected , or ] after a record"),
        (b'{"prompt": oops}, {"prompt": "p", "completion": "q"}]', "Expecting value"),
        (b'{"prompt": "p", "completion": "q"}] more', "more text after the array"),
        (b'{"prompt": "p", "completion": "q"}', "the array ends in the middle"),
        (b"", "the text ends in the middle"),
    ],
)
def test_an_array_that_breaks_keeps_what_came_before(tmp_path: Path, tail: bytes, says: str) -> None:
    """Records before the break are good; the break is one rejected record with its position in the file."""
    head = json.dumps(ROWS).encode()[:-1] + b", "
    path = tmp_path / "x.json"
    path.write_bytes(head + tail)
    shards = read_all(plan_of(tmp_path, path, shard_bytes=4096))
    records = [record for shard in shards for record in shard.records]
    assert records[:500] == ROWS
    broken = records[-1]
    assert isinstance(broken, RecordProblem)
    assert says in broken.detail
    position = int(broken.detail.split("at character ")[1].split()[0])
    assert len(head) - 1 <= position <= len(head) + len(tail) + 1
    assert len(records) == 501 + tail.startswith((b'{"prompt": "p"}', b'{"prompt": "p", "completion": "q"}'))


def test_one_bad_byte_costs_one_record(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 reject their record; an array goes on behind it."""
    body = json.dumps([{"prompt": f"<{i}>", "completion": "c"} for i in range(9)]).encode()
    (tmp_path / "x.json").write_bytes(body.replace(b"<4>", b"\xff\xfe"))
    records = records_of(plan_of(tmp_path, tmp_path / "x.json"))
    assert records[4] == ("not_utf8", 5)
    assert [r["prompt"] for i, r in enumerate(records) if i != 4] == [f"<{i}>" for i in range(9) if i != 4]


def test_objects_of_columns(tmp_path: Path) -> None:
    """Each row gets the values under its number; a row that a column lacks has no such key."""
    columns = {
        "prompt": {"0": "a", "10": "c", "2": "b"},
        "completion": {"0": "x", "2": "y", "10": "z"},
        "category_": {"0": "k", "10": None},
    }
    (tmp_path / "x.json").write_text(json.dumps(columns))
    (tmp_path / "y.json.gz").write_bytes(gzip.compress(json.dumps(columns, indent=1).encode()))
    expected = [
        {"prompt": "a", "completion": "x", "category_": "k"},
        {"prompt": "b", "completion": "y"},
        {"prompt": "c", "completion": "z", "category_": None},
    ]
    assert records_of(plan_of(tmp_path / "w", tmp_path)) == expected * 2


def test_single_and_concatenated_objects(tmp_path: Path) -> None:
    """One pretty-printed object is one record; several are several, until one breaks."""
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=2))
    assert records_of(plan_of(tmp_path / "w", tmp_path / "a.json")) == ROWS[:1]
    (tmp_path / "b.json").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS) + "\n{")
    assert records_of(plan_of(tmp_path / "w", tmp_path / "b.json")) == [*ROWS, ("bad_json", 501)]


def test_numbers_are_copied_as_they_stand(tmp_path: Path) -> None:
    """Staging does not go through floats: long integers and exact decimals survive."""
    (tmp_path / "x.json").write_text('[{"prompt": "p", "completion": "c", "n": 123456789012345678901234567890}, 12]')
    assert records_of(plan_of(tmp_path, tmp_path / "x.json"))[0]["n"] == 123456789012345678901234567890
    assert "12345678901234567890" in next(tmp_path.glob("*-*.jsonl")).read_text()


def test_staging_twice_gives_the_same_files(tmp_path: Path) -> None:
    """A task that runs again writes what is there already."""
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    one, two = (plan_of(tmp_path / "w", tmp_path / "x.json", shard_bytes=2048) for _ in range(2))
    assert one == two
