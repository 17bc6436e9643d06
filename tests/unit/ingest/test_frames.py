"""Tests of compressed files that are read in parts: the same records and numbers as from one stream."""

from __future__ import annotations

import gzip
import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.config import InputSpec
from qtune_service.ingest import frames, planner
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.plan import Plan
from qtune_service.ingest.planner import plan_input, scan, split
from qtune_service.storage import file_io
from tests.unit.ingest.planning import plan_of, read_all, records_of

END_OF_BGZIP = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
SEEK_TABLE = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 9) + struct.pack("<IB", 0, 0) + b"\xb1\xea\x92\x8f"


def bgzip(data: bytes, sizes: Sequence[int]) -> bytes:
    """Pack data as bgzip does: members of up to 64 KiB with their size in an extra field, and an empty one."""
    packed = []
    for block in cut(data, [min(size, 60_000) for size in sizes]):
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = deflate.compress(block) + deflate.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H2sHH", 6, b"BC", 2, len(body) + 25)
        packed.append(head + body + struct.pack("<II", zlib.crc32(block), len(block)))
    return b"".join(packed) + END_OF_BGZIP


def zstd(data: bytes, sizes: Sequence[int]) -> bytes:
    """Pack data as zstd frames behind one another, with checksums as the command line tool writes them."""
    return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(block) for block in cut(data, sizes))


def pzstd(data: bytes, sizes: Sequence[int]) -> bytes:
    """Pack data as pzstd does: a frame without content before each frame."""
    packed = map(zstandard.compress, cut(data, sizes))
    return b"".join(b"\x50\x2a\x4d\x18" + struct.pack("<II", 4, len(frame)) + frame for frame in packed)


def seekable(data: bytes, sizes: Sequence[int]) -> bytes:
    """Pack data in the seekable format of zstd: with a table of frames at the end."""
    return zstd(data, sizes) + SEEK_TABLE


PACKS = {"gz": bgzip, "zst": zstd, "pzst": pzstd, "seek": seekable}


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut data at any bytes, into blocks of these sizes in turn."""
    blocks, at, number = [], 0, 0
    while at < len(data):
        blocks.append(data[at : at + sizes[number % len(sizes)]])
        at, number = at + len(blocks[-1]), number + 1
    return blocks


def write(folder: Path, pack: str, data: bytes, sizes: Sequence[int]) -> Path:
    """Write a packed file with the suffix of its compression."""
    path = folder / f"x.jsonl.{'gz' if pack == 'gz' else 'zst'}"
    path.write_bytes(PACKS[pack](data, sizes))
    return path


def plan_in_parts(path: Path, work: Path, part_bytes: int, *, whole: bool = False) -> tuple[Plan, int]:
    """Return the plan of a file that is read in parts of this size, and their number in the last cut."""
    spec = InputSpec(paths=(str(path),), format="prompt_completion", shard_bytes=1024)
    numbers: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "SHARDS_A_PART", 1 << 40 if whole else part_bytes / 1024)
        patch.setattr(planner, "range", lambda a, b, step: range(a, b, int(step)), raising=False)
        plan = plan_input(
            discover(spec.paths),
            spec,
            lambda chunks: {chunk.index: scan(chunk, spec, work=str(work)) for chunk in chunks},
            lambda chunks, _: numbers.append(len(chunks)),
        )
    return plan, numbers[-1]


def records_and_lines(plan: Plan) -> list[tuple[int, Any]]:
    """Return the records with their numbers."""
    shards = read_all(plan)
    return list(zip([line for shard in shards for line in shard.lines], records_of(plan), strict=True))


lines = st.one_of(
    st.builds(lambda t: json.dumps({"prompt": t, "completion": "c"}, ensure_ascii=False), st.text(max_size=60)),
    st.sampled_from(["", "  ", "{bad", '{"prompt": "' + "long " * 300 + '", "completion": "c"}']),
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(lines, max_size=40),
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
    st.integers(40, 1500),
    st.booleans(),
    st.sampled_from(sorted(PACKS)),
)
def test_parts_give_what_one_stream_gives(
    texts: list[str], sizes: list[int], part_bytes: int, ends: bool, pack: str
) -> None:
    """For any frames, parts and lines: the same records with the same numbers, so also the same ids."""
    texts = [*texts, '{"prompt": "a", "completion": "b"}']
    data = ("\n".join(texts) + ("\n" if ends else "")).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), pack, data, sizes)
        whole, _ = plan_in_parts(path, Path(folder) / "whole", part_bytes, whole=True)
        plan, _ = plan_in_parts(path, Path(folder) / "parts", part_bytes)
        assert records_and_lines(plan) == records_and_lines(whole)
        assert plan.num_records == whole.num_records


def rows(count: int) -> bytes:
    """Return lines that do not compress to nothing."""
    numbers = random.Random(0)
    return b"".join(
        json.dumps({"prompt": numbers.randbytes(40).hex(), "completion": f"{i}"}).encode() + b"\n" for i in range(count)
    )


@pytest.mark.parametrize("pack", sorted(PACKS))
def test_a_file_of_frames_is_read_in_parts(tmp_path: Path, pack: str) -> None:
    """A file becomes many chunks by its size alone, and all records are read once."""
    path = write(tmp_path, pack, rows(5000), [2000, 5000])
    chunks = split(discover([str(path)]), InputSpec(paths=(str(path),), shard_bytes=4096))
    assert len(chunks) > 10
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    plan = plan_of(tmp_path / "work", path, shard_bytes=4096)
    assert [record["completion"] for record in records_of(plan)] == [f"{i}" for i in range(5000)]


def plain_gzip(data: bytes) -> bytes:
    return gzip.compress(data)


def one_frame(data: bytes) -> bytes:
    return zstandard.compress(data)


@pytest.mark.parametrize("pack", [plain_gzip, one_frame])
def test_one_stream_is_one_chunk(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Plain gzip and a single frame cannot be split."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(pack(rows(5000)))
    assert len(split(discover([str(path)]), InputSpec(paths=(str(path),), shard_bytes=1024))) == 1


@pytest.mark.parametrize("pack", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "in the middle", "a gap"])
def test_damage_is_reported_as_by_one_stream(tmp_path: Path, pack: str, damage: str) -> None:
    """A file that is no chain of frames is read as one stream: the records before the break, and the break."""
    path = write(tmp_path, pack, rows(3000), [3000])
    data = path.read_bytes()
    middle = len(data) // 2
    broken = {
        "truncated": data[:middle],
        "in the middle": data[:middle] + bytes(200) + data[middle + 200 :],
        "a gap": data[:middle] + b"no frame" + data[middle:],
    }
    path.write_bytes(broken[damage])
    whole, _ = plan_in_parts(path, tmp_path / "whole", 20_000, whole=True)
    plan, chunks = plan_in_parts(path, tmp_path / "parts", 20_000)
    assert records_and_lines(plan) == records_and_lines(whole)
    assert chunks == 1
    assert 100 < plan.num_records < 3000


def test_bytes_that_look_like_a_frame_are_no_frame(tmp_path: Path) -> None:
    """The first bytes of a frame within a frame do not begin a part."""
    body = b"".join(b'{"prompt": "%d", "completion": "c"}\n' % i for i in range(200))
    hidden = zstandard.compress(b"x" * 100)
    frame = zstandard.ZstdCompressor(level=-100).compress(body)
    noise = b"\x51\x2a\x4d\x18" + struct.pack("<I", 3 * len(hidden)) + hidden * 3
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes((frame + noise) * 40)
    plan, _ = plan_in_parts(path, tmp_path / "parts", 700)
    assert [record["prompt"] for record in records_of(plan)] == [f"{i}" for i in range(200)] * 40


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_parts_read_little_more_than_their_bytes(tmp_path: Path, pack: str) -> None:
    """All parts together read the file about once."""
    path = write(tmp_path, pack, rows(120_000), [60_000])
    read = 0
    with file_io.open_ranges(str(path)) as file:
        inner = file.file.read_at
        size = file.size_bytes

        class Counting:
            def read_at(self, count: int, start: int) -> bytes:
                nonlocal read
                data: bytes = inner(count, start)
                read += len(data)
                return data

            def size(self) -> int:
                return size

        file.file = Counting()
        edges = [*range(0, size, 1 << 21), size]
        parts = [frames.Part(file, "gz" if pack == "gz" else "zst", *edge) for edge in pairwise(edges)]
        found = sum(block.count(b"\n") for part in parts for block in part.lines())
        spans = [(part.began, part.ended) for part in parts if part.began >= 0]
    assert found == 120_000
    assert len(parts) > 2
    assert read < 1.4 * size
    assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]


def test_the_rest_of_the_input_is_scanned_once(tmp_path: Path) -> None:
    """A file that is cut again costs no second scan of the others."""
    (tmp_path / "a.jsonl").write_bytes(rows(100))
    path = write(tmp_path, "zst", rows(3000), [3000])
    path.write_bytes(path.read_bytes()[:-5])
    spec = InputSpec(paths=(str(tmp_path),), shard_bytes=2048)
    scanned: list[str] = []

    def scan_chunks(chunks: Sequence[planner.Chunk]) -> dict[int, planner.ChunkScan]:
        scanned.extend(chunk.file.name for chunk in chunks)
        return {chunk.index: scan(chunk, spec, work=str(tmp_path / "_work")) for chunk in chunks}

    plan = plan_input(discover(spec.paths), spec, scan_chunks)
    ranges = len({(shard.start, shard.uri) for shard in plan.shards if shard.file_index == 0})
    assert scanned.count(str(tmp_path / "a.jsonl")) == ranges
    assert replace(plan.shards[0], index=1) != plan.shards[1]
