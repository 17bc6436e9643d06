"""Tests of Arrow IPC files: streams and Feather, indexed and read like Parquet, in any runs of rows."""

from __future__ import annotations

import datetime as dt
import random
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.config import InputSpec
from qtune_service.errors import DataError, StorageError
from qtune_service.ingest import arrow_files
from qtune_service.ingest.arrow_files import index_of, iter_rows
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.reader import first_records
from qtune_service.ingest.row_files import num_rows
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint
from tests.unit.ingest.planning import columns_of, plan_of, read_all, records_of

ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i}" * 20, "completion": "c", "kind": "ab"[i % 2], "turn": {"role": "user", "n": [i]}}
    for i in range(3000)
]
TABLE = pa.Table.from_pylist(ROWS)


def stream(table: pa.Table, batch_rows: int, options: Any = None) -> bytes:
    """Return a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table, batch_rows)
    return sink.getvalue().to_pybytes()


def file(table: pa.Table, batch_rows: int, options: Any = None) -> bytes:
    """Return a table as an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, batch_rows)
    return sink.getvalue().to_pybytes()


def rows_in(path: Path, start: int = 0, stop: int = 1 << 60, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Return rows by the reader."""
    batches = iter_rows(str(path), str(path.stat().st_mtime_ns), start, stop, columns)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("write", [stream, file])
@pytest.mark.parametrize("batch_rows", [7, 1000, 3000])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_rows_are_cut_within_and_across_batches(tmp_path: Path, write: Any, batch_rows: int, compression: Any) -> None:
    """Small batches are joined, large ones cut; every row is read once, with its number, by a job and a preview."""
    path = tmp_path / "x.arrow"
    path.write_bytes(write(TABLE, batch_rows, pa.ipc.IpcWriteOptions(compression=compression)))
    plan = plan_of(tmp_path / "work", path, shard_bytes=8192)
    assert len(plan.shards) > 2
    assert {shard.kind for shard in plan.shards} == {"arrow"}
    assert records_of(plan) == [{"prompt": row["prompt"], "completion": "c"} for row in ROWS]
    assert columns_of(plan) == ROWS
    assert [line for shard in read_all(plan) for line in shard.lines] == list(range(1, 3001))
    assert [one.record for one in first_records(InputSpec(paths=(str(path),)), 50)] == ROWS[:50]
    assert num_rows(discover([str(path)])[0]) == 3000


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    start=st.integers(0, 60),
    count=st.integers(0, 60),
    decode_bytes=st.sampled_from([1, 500, 8 << 20]),
    deltas=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_run_of_rows(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int], start: int, count: int, decode_bytes: int, deltas: bool, seed: int,
) -> None:  # fmt: skip
    """Batches of any size, with dictionaries that grow or change between them: the rows are those of pyarrow."""
    numbers = random.Random(seed)
    schema = pa.schema([("a", pa.int64()), ("d", pa.dictionary(pa.int32(), pa.string()))])
    batches, words = [], ["w0"]
    for size in sizes:
        words = [*words, f"w{len(words)}"] if deltas or numbers.random() < 0.5 else [f"x{numbers.randint(0, 9)}"]
        codes = pa.array([numbers.randrange(len(words)) for _ in range(size)], pa.int32())
        columns = [pa.array(range(size), pa.int64()), pa.DictionaryArray.from_arrays(codes, pa.array(words))]
        batches.append(pa.record_batch(columns, schema=schema))
    path = tmp_path_factory.mktemp("any") / "x.arrow"
    with pa.ipc.new_stream(str(path), schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    rows = [row for batch in batches for row in batch.to_pylist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_files, "DECODE_BYTES", decode_bytes)
        assert rows_in(path, start, start + count) == rows[start : start + count]
        assert rows_in(path, start, start + count, ["d"]) == [{"d": row["d"]} for row in rows[start : start + count]]
    assert index_of(str(path), "").num_rows == len(rows)


@pytest.mark.parametrize("version", [pa.ipc.MetadataVersion.V4, pa.ipc.MetadataVersion.V5])
@pytest.mark.parametrize("is_legacy", [False, True])
def test_old_files_are_read(tmp_path: Path, version: Any, is_legacy: bool) -> None:
    """Earlier versions of the format, in a file."""
    options = pa.ipc.IpcWriteOptions(metadata_version=version, use_legacy_format=is_legacy)
    (tmp_path / "x.arrow").write_bytes(file(TABLE, 500, options))
    assert rows_in(tmp_path / "x.arrow", 490, 1100) == ROWS[490:1100]


def test_own_columns_keep_their_types(tmp_path: Path) -> None:
    """Times, decimals, binary, dictionaries and lists stay Arrow, as from Parquet."""
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "completion": ["c", "d"],
            "at": pa.array([dt.datetime(2024, 1, 2, tzinfo=dt.UTC)] * 2, pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "raw": [b"\x00\xff", None],
            "word": pa.array(["x", "y"]).dictionary_encode(),
            "view": pa.array(["long enough not to be inlined", None], pa.string_view()),
            "views": pa.array([["x" * 20, None], None], pa.list_view(pa.string_view())),
            "inner": pa.array([{"v": ["y"]}, None], pa.struct([("v", pa.list_view(pa.string_view()))])),
            "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array([7])),
            "words": pa.array(["x", "y"]).dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string_view())),
            "large": pa.array([["x"], None], pa.large_list(pa.large_string())),
        }
    )
    (tmp_path / "x.feather").write_bytes(file(table, 1))
    plan = plan_of(tmp_path, tmp_path / "x.feather")
    found = pa.concat_tables([shard.own_columns(range(len(shard.records))) for shard in read_all(plan)])
    assert found.to_pylist() == table.to_pylist()
    assert found.schema.field("at").type == pa.timestamp("us", "UTC")
    assert found.schema.field("price").type == pa.decimal128(9, 2)


def test_files_of_other_libraries(tmp_path: Path) -> None:
    """Files and streams of pandas and polars, which writes text as views."""
    frames, names = pytest.importorskip("polars"), ("a.arrow", "b.arrow", "c.feather")
    rows = [
        {"messages": [{"role": "user", "content": "Hi" * 20}, {"role": "assistant", "content": "Hello."}], "k": "x"}
    ]
    frame = frames.DataFrame(rows, schema_overrides={"k": frames.Categorical})
    frame.write_ipc(tmp_path / names[0], compression="zstd")
    frame.write_ipc_stream(tmp_path / names[1])
    pytest.importorskip("pandas").DataFrame(rows).to_feather(tmp_path / names[2])
    plan = plan_of(tmp_path / "work", *(tmp_path / name for name in names))
    assert columns_of(plan) == rows * 3


def test_takes_by_category_and_limit(tmp_path: Path) -> None:
    """Categories are counted without the other columns, and taken in order."""
    (tmp_path / "x.arrow").write_bytes(stream(TABLE, 40))
    options: dict[str, Any] = {"shard_bytes": 8192, "category_field": "kind"}
    plan = plan_of(tmp_path, tmp_path / "x.arrow", take={"b": 200}, **options)
    expected = [row for row in ROWS if row["kind"] == "b"]
    assert [row["prompt"] for row in records_of(plan)] == [row["prompt"] for row in expected[:200]]
    plan = plan_of(tmp_path, tmp_path / "x.arrow", limit=77, **options)
    assert plan.num_records == 77


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """Rows of a file that was written again are not taken for those planned."""
    path = tmp_path / "x.arrow"
    path.write_bytes(stream(TABLE, 100))
    plan = plan_of(tmp_path, path)
    path.write_bytes(stream(TABLE.slice(1), 100))
    with pytest.raises(DataError, match="has changed"):
        read_all(plan)


def test_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    """As in Parquet."""
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt", "prompt"])
    (tmp_path / "x.arrow").write_bytes(stream(table, 10))
    with pytest.raises(DataError, match="several columns named prompt"):
        plan_of(tmp_path, tmp_path / "x.arrow")


@pytest.mark.parametrize("write", [stream, file])
def test_a_truncated_file_is_named(tmp_path: Path, write: Any) -> None:
    """Wherever it ends, apart from the end of a batch of a stream."""
    data = write(TABLE, 100)
    path = tmp_path / "x.arrow"
    for size in (9, 40, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"x\.arrow is not a readable Arrow file"):
            index_of(str(path), str(size))


@pytest.mark.parametrize("write", [stream, file])
def test_damaged_files_are_errors(tmp_path: Path, write: Any) -> None:
    """Random bytes anywhere: an error that names the file, or rows, and never a crash."""
    data, numbers = write(TABLE.slice(0, 60), 20), random.Random(0)
    for version in range(300):
        damaged = bytearray(data)
        for _ in range(numbers.randint(1, 8)):
            at = numbers.randrange(len(data))
            damaged[at : at + 4] = numbers.choice(
                [b"\xff" * 4, bytes(4), numbers.randbytes(4), struct.pack("<i", 1 << 30)]
            )
        path = tmp_path / f"{version}.arrow"
        path.write_bytes(damaged)
        problem = ""
        try:
            rows_in(path)
        except (DataError, StorageError) as error:
            problem = error.message
        assert f"{version}.arrow" in (problem or path.name)


def test_an_input_on_s3(tmp_path: Path, s3: S3Endpoint) -> None:
    """Batches are read by ranges from S3, like rows of Parquet."""
    file_io.write_bytes(s3.uri("arrow/a.arrow"), stream(TABLE, 100))
    file_io.write_bytes(s3.uri("arrow/b.feather"), file(TABLE, 1000))
    plan = plan_of(s3.uri("arrow-work"), s3.uri("arrow"), shard_bytes=65536)
    assert columns_of(plan) == ROWS * 2
    assert len(plan.shards) > 4
    file_io.write_bytes(s3.uri("arrow/a.arrow"), stream(TABLE, 200))
    with pytest.raises(DataError, match=r"a.arrow has changed"):
        plan.verify_unchanged(discover([s3.uri("arrow")]))
