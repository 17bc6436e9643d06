"""Tests of row groups that give several shards: read once in each pass, in bounded memory, with the same records."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.ingest import scanner
from qtune_service.ingest.plan import Plan
from qtune_service.ingest.reader import read_shard
from qtune_service.ingest.row_files import cut, groups_of
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint
from tests.unit.ingest.planning import columns_of, plan_of, read_all, records_of

MEASURED = """
import sys
from pathlib import Path
from tests.unit.ingest.planning import plan_of
def peak_kib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
data, work = sys.argv[1:]
before = peak_kib()
plan = plan_of(work, data, shard_bytes=1 << 20)
print(peak_kib() - before, len(plan.shards))
"""


def read_bytes() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])


def write_group(path: Path, rows: int, row_bytes: int) -> Path:
    """Write one row group of text that does not compress much."""
    numbers = random.Random(0)
    texts = [numbers.randbytes(row_bytes // 2).hex() for _ in range(rows)]
    pq.write_table(pa.table({"prompt": texts, "completion": ["c"] * rows}), path, row_group_size=rows)
    return path


def typed_rows(texts: list[str]) -> pa.Table:
    """Return columns of many types, in which a round trip through JSON would lose something."""
    count = len(texts)
    return pa.table(
        {
            "prompt": pa.array(texts),
            "completion": pa.array([f"c{i}" for i in range(count)]),
            "kind": pa.array([("a", "b", None)[i % 3] for i in range(count)]).dictionary_encode(),
            "at": pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * count, pa.timestamp("us", "UTC")),
            "raw": pa.array([bytes([i % 256]) for i in range(count)], pa.binary()),
            "tags": pa.array([[{"n": i, "s": None}] * (i % 3) for i in range(count)]),
        }
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(max_size=300), min_size=1, max_size=120),
    st.integers(1, 130),
    st.integers(1024, 6000),
    st.sampled_from(["parquet", "stream", "file"]),
    st.sampled_from([1, 4 << 20]),
)
def test_any_groups_give_the_records_of_a_plain_read(
    texts: list[str], group_rows: int, shard_bytes: int, kind: str, staged_bytes: int
) -> None:
    """For any groups and shards, in Parquet and Arrow: the same records, own columns and numbers, in order."""
    table = typed_rows(texts)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanner, "STAGED_BYTES", staged_bytes)
        path = Path(folder) / ("x.parquet" if kind == "parquet" else "x.arrow")
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=group_rows)
            table = pq.read_table(path)
        else:
            make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with make(str(path), table.schema) as sink:
                sink.write_table(table, max_chunksize=group_rows)
        plan = plan_of(Path(folder) / "work", path, shard_bytes=shard_bytes)
        plain = table.set_column(2, "kind", table["kind"].cast(pa.string())).to_pylist()
        shards = read_all(plan)
        assert columns_of(plan) == plain
        assert [record["prompt"] for record in records_of(plan)] == texts
        assert [line for shard in shards for line in shard.lines] == list(range(1, len(texts) + 1))


def test_a_group_is_read_once_in_each_pass(tmp_path: Path) -> None:
    """Planning and encoding each read a file of one row group about once, and give many shards."""
    path = write_group(tmp_path / "x.parquet", 4000, 8000)
    size, start = path.stat().st_size, read_bytes()
    plan = plan_of(tmp_path / "work", path, shard_bytes=1 << 20)
    planned = read_bytes()
    assert sum(len(read_shard(plan, shard).lines) for shard in plan.shards) == 4000
    assert len(plan.shards) > 20
    assert planned - start < 1.2 * size
    assert read_bytes() - planned < 1.2 * size


def test_planning_of_small_groups_reads_no_data(tmp_path: Path) -> None:
    """Footers and the first records are read, once a file, not once a shard."""
    path = tmp_path / "x.parquet"
    numbers = random.Random(0)
    texts = [numbers.randbytes(4000).hex() for _ in range(4000)]
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), path, row_group_size=100)
    start = read_bytes()
    plan = plan_of(tmp_path / "work", path, shard_bytes=1 << 20)
    assert read_bytes() - start < 0.1 * path.stat().st_size
    assert len(plan.shards) == 40
    assert not (tmp_path / "work").exists()


def test_memory_does_not_grow_with_the_group(tmp_path: Path) -> None:
    """A group of four times the size takes little more memory."""
    grown = []
    for rows in (8_000, 32_000):
        path = write_group(tmp_path / f"{rows}.parquet", rows, 8000)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, path, tmp_path / "work"], capture_output=True, text=True, check=True
        )
        kib, shards = map(int, done.stdout.split())
        assert shards > rows // 150
        grown.append(kib / 1024)
    assert 0 < grown[1] < grown[0] + 64, f"MiB for groups of 64 and 256 MB: {grown}"


def test_values_that_decode_to_more_than_is_stored(tmp_path: Path) -> None:
    """Shards of a group are bounded by what their rows take in memory, not only by what the file stores."""
    path = tmp_path / "x.parquet"
    texts = [f"{i % 4}" * 4000 for i in range(4000)]  # a dictionary of four values
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), path)
    plan = plan_of(tmp_path / "work", path, shard_bytes=4096)
    assert groups_of(plan.files[0])[0].num_bytes < 100_000
    assert max(shard.num_records for shard in plan.shards) <= 1024
    assert [record["prompt"] for record in records_of(plan)] == texts


@pytest.mark.parametrize("options", [{"limit": 50}, {"limit": 5, "category_field": "kind", "take": {"b": 100}}])
def test_a_limit_ends_the_reading_of_a_group(tmp_path: Path, options: dict[str, Any]) -> None:
    """Of a large group only the shards up to the limit are stored."""
    path = tmp_path / "x.parquet"
    pq.write_table(typed_rows([f"{i}" * 500 for i in range(5000)]), path)
    whole = plan_of(tmp_path / "all", path, shard_bytes=16_000)
    plan = plan_of(tmp_path / "some", path, shard_bytes=16_000, **options)
    records = [one["prompt"] for i, one in enumerate(records_of(whole)) if "take" not in options or i % 3 == 1]
    assert [one["prompt"] for one in records_of(plan)] == records[: options["limit"]]
    stored = {name: sum(f.stat().st_size for f in (tmp_path / name).iterdir()) for name in ("all", "some")}
    assert stored["some"] < stored["all"] / 10


def test_plans_of_the_version_before_are_read(tmp_path: Path) -> None:
    """A plan whose shards are rows inside of a group, without a digest, gives the same records."""
    path = tmp_path / "x.parquet"
    table = typed_rows([f"{i}" * 200 for i in range(1000)])
    pq.write_table(table, path)
    plan = plan_of(tmp_path / "work", path, shard_bytes=1 << 20)
    (only,) = plan.shards
    edges = range(0, 1000, 100)
    shards = [
        replace(only, index=i, start=at, stop=at + 100, first_line=at + 1, num_records=100)
        for i, at in enumerate(edges)
    ]
    body = json.loads(replace(plan, shards=tuple(shards)).to_json())
    for file in body["files"]:
        del file["modified"], file["is_checked"]
    earlier = Plan.from_json(json.dumps(body))
    assert records_of(earlier) == records_of(plan)
    assert earlier.verify_unchanged(plan.files) == []


def test_a_changed_staged_file_is_noticed(tmp_path: Path) -> None:
    """Staged rows have a digest."""
    plan = plan_of(tmp_path / "work", write_group(tmp_path / "x.parquet", 100, 1000), shard_bytes=4000)
    staged = next((tmp_path / "work").iterdir())
    staged.write_bytes(staged.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match="changed"):
        read_all(plan)


def test_large_groups_on_s3(s3: S3Endpoint, tmp_path: Path) -> None:
    """Rows of an object are staged in the object store, and an object that is replaced is noticed."""
    path = write_group(tmp_path / "x.parquet", 500, 4000)
    file_io.write_bytes(s3.uri("in/x.parquet"), path.read_bytes())
    plan = plan_of(s3.uri("work"), s3.uri("in/x.parquet"), shard_bytes=100_000)
    assert len(plan.shards) > 10
    assert [record["prompt"] for record in records_of(plan)] == pq.read_table(path)["prompt"].to_pylist()
    small = plan_of(s3.uri("work"), s3.uri("in/x.parquet"), shard_bytes=4 << 20)
    assert [shard.kind for shard in small.shards] == ["parquet"]
    write_group(path, 500, 4002)
    file_io.write_bytes(s3.uri("in/x.parquet"), path.read_bytes())
    with pytest.raises(DataError, match="changed"):
        read_all(small)


def test_cuts_follow_groups() -> None:
    """Small groups are joined, a large one is a run of its own with the number of its shards."""
    from qtune_service.ingest.row_files import Group, Run

    groups = [Group(10, 100), Group(10, 100), Group(0, 500), Group(1000, 5000), Group(1, 900), Group(10, 10)]
    assert cut(groups, 200) == [Run(0, 20), Run(20, 1020, 25), Run(1020, 1021), Run(1021, 1031)]
    assert Run(0, 10, 3).edges == [(0, 3), (3, 6), (6, 10)]
