"""Tests of planning: nothing lost, nothing twice, whatever the cuts."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.config import InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.plan import Chunk
from qtune_service.ingest.planner import default_shard_bytes, is_enough, make_plan, scan, split
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint
from tests.unit.ingest.planning import plan_of, read_all, records_of


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "completion": "c", **more}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


lines = st.one_of(
    st.builds(lambda t: json.dumps({"prompt": t, "completion": "ü"}, ensure_ascii=False), st.text(max_size=40)),
    st.sampled_from(["", "  ", "{bad", "[1]", "漢" * 30, '{"prompt": "x", "completion": "' + "long " * 60 + '"}']),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(lines, min_size=1, max_size=25),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 400),
    st.booleans(),
)
def test_every_line_is_read_once(texts: list[str], end: str, ends: bool, piece_bytes: int, bom: bool) -> None:
    """Shards hold exactly the file's lines, for any cuts: multi-byte text, CRLF, blank and long lines."""
    texts = [t.replace("\n", " ").replace("\r", " ") for t in [*texts, '{"prompt": "a", "completion": "b"}']]
    data = (b"\xef\xbb\xbf" if bom else b"") + (end.join(texts) + (end if ends else "")).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_bytes(data)
        spec = InputSpec(paths=(str(path),), format="prompt_completion")
        files = discover(spec.paths)
        edges = [*range(0, len(data), piece_bytes), len(data)]
        chunks = [Chunk(i, 0, files[0], *edge, 1024) for i, edge in enumerate(pairwise(edges))]
        plan = make_plan(files, chunks, [scan(chunk, spec, work=folder) for chunk in chunks], spec)
        shards = read_all(plan)
    expected = [(i, t) for i, t in enumerate(texts, 1) if t.encode().strip()]
    assert [line for shard in shards for line in shard.lines] == [line for line, _ in expected]
    excerpts = [shard.excerpt(i, 1000) for shard in shards for i in range(len(shard.lines))]
    assert excerpts == [text.strip(" \t\x00") for _, text in expected]
    assert plan.num_records == len(expected)
    ids = [one for shard in shards for one in shard.sample_ids]
    assert len(set(ids)) == len(ids)


def test_shards_do_not_depend_on_who_scans(tmp_path: Path) -> None:
    """The same input gives the same plan, in whatever order its scans come."""
    path = write_rows(tmp_path / "x.jsonl", [row(i) for i in range(2000)])
    spec = InputSpec(paths=(str(path),), shard_bytes=2048)
    files = discover(spec.paths)
    chunks = split(files, spec)
    scans = [scan(chunk, spec, work=str(tmp_path)) for chunk in chunks]
    assert len(chunks) > 10
    assert make_plan(files, chunks, scans, spec) == make_plan(files, chunks, scans[::-1], spec)


def test_shard_size_follows_the_input(tmp_path: Path) -> None:
    """By default there are 256 shards of at least 128 KiB; no tiny one is left at the end."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 100_000)
    spec = InputSpec(paths=(str(path),))
    sizes = [chunk.stop - chunk.start for chunk in split(discover(spec.paths), spec)]
    assert sum(sizes) == path.stat().st_size
    assert min(sizes) >= 64 << 10
    assert set(sizes[:-1]) == {128 << 10}


@pytest.mark.parametrize(
    ("input_gib", "shard_mib", "shards"), [(0.25, 1, 256), (1, 4, 256), (4, 4, 1024), (20, 8, 2560), (80, 16, 5120)]
)
def test_large_inputs_have_more_shards(input_gib: float, shard_mib: int, shards: int) -> None:
    """By their size alone: dozens of actors get dozens of shards each, and files do not become too many."""
    size = default_shard_bytes(int(input_gib * (1 << 30)))
    assert size == shard_mib << 20
    assert input_gib * (1 << 30) / size == shards


@pytest.mark.parametrize("limit", [1, 7, 50, 99, 100, 500])
def test_limit_reads_the_first_records_of_all_files(tmp_path: Path, limit: int) -> None:
    """The first N records in input order are read, across shards and files; rejected lines count."""
    rows = [row(i) for i in range(100)]
    write_rows(tmp_path / "a.jsonl", rows[:60])
    (tmp_path / "b.jsonl").write_text("{bad\n" + "".join(json.dumps(r) + "\n" for r in rows[60:]))
    plan = plan_of(tmp_path, tmp_path / "a.jsonl", tmp_path / "b.jsonl", limit=limit, shard_bytes=1024)
    expected = [*rows[:60], ("bad_json", 1), *rows[60:]][:limit]
    assert records_of(plan) == expected
    assert plan.num_records == len(expected)


def test_limit_needs_the_first_scans_only(tmp_path: Path) -> None:
    """Once the first chunks hold enough, the plan is the same without the others; before, it is refused."""
    path = write_rows(tmp_path / "x.jsonl", [row(i) for i in range(500)])
    spec = InputSpec(paths=(str(path),), shard_bytes=1024, limit=40)
    files = discover(spec.paths)
    chunks = split(files, spec)
    scans = [scan(chunk, spec, work=str(tmp_path)) for chunk in chunks]
    enough = next(n for n in range(len(chunks)) if is_enough(scans[:n], spec))
    assert 1 < enough < len(chunks)
    assert make_plan(files, chunks, scans[:enough], spec) == make_plan(files, chunks, scans, spec)
    with pytest.raises(ValueError, match="all chunks"):
        make_plan(files, chunks, scans[: enough - 1], spec)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["math", "code", None, 7, "bad"]), min_size=1, max_size=60),
    st.integers(0, 9), st.integers(0, 9), st.one_of(st.none(), st.integers(1, 9)),
)  # fmt: skip
def test_take_reads_the_first_of_each_category(kinds: list[Any], math: int, seven: int, limit: int | None) -> None:
    """Each category gives its first N in input order, decided by every shard alone; bad lines are not selected."""
    kinds = ["math", 7, *kinds]
    rows = [row(i, kind=kind) for i, kind in enumerate(kinds)]
    quotas, expected = {"math": math, "7": seven}, []
    for one in rows:
        name = str(one["kind"])
        if quotas.get(name):
            quotas[name] -= 1
            expected.append(one)
    expected = expected[:limit]
    text = "".join("{bad\n" if one["kind"] == "bad" else json.dumps(one) + "\n" for one in rows)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.jsonl").write_text(text)
        options: dict[str, Any] = {"category_field": "kind", "take": {"math": math, "7": seven}, "limit": limit}
        if not expected:
            with pytest.raises(DataError, match="no record was selected"):
                plan_of(folder, f"{folder}/x.jsonl", shard_bytes=1024, **options)
            return
        plan = plan_of(folder, f"{folder}/x.jsonl", shard_bytes=1024, **options)
        assert records_of(plan) == expected
        assert plan.num_records == len(expected)


def test_categories_that_nobody_has_are_named(tmp_path: Path) -> None:
    """A typing mistake in a category or its field is an error that lists what there is."""
    path = write_rows(tmp_path / "x.jsonl", [row(1, kind="math"), row(2, kind="code")])
    with pytest.raises(DataError, match="no record has kind = maths") as caught:
        plan_of(tmp_path, path, category_field="kind", take={"maths": 1})
    assert "math, code" in caught.value.hint
    with pytest.raises(DataError, match="no record has the category field knd") as caught:
        plan_of(tmp_path, path, category_field="knd")
    assert "kind" in caught.value.hint


def test_parquet_rows_are_cut_within_and_across_row_groups(tmp_path: Path) -> None:
    """Small row groups are joined, large ones cut; every row is read once, with its number."""
    table = pa.table({"prompt": [f"p{i}" * 20 for i in range(3000)], "completion": ["c"] * 3000})
    for size in (7, 1000, 3000):
        path = tmp_path / f"{size}.parquet"
        pq.write_table(table, path, row_group_size=size)
        plan = plan_of(tmp_path, path, shard_bytes=8192)
        assert 5 < len(plan.shards) < 60
        assert records_of(plan) == table.to_pylist()
        assert [line for shard in read_all(plan) for line in shard.lines] == list(range(1, 3001))


def test_parquet_takes_by_category(tmp_path: Path) -> None:
    """Categories of Parquet rows are counted without reading the other columns, and taken in order."""
    rows = [row(i, kind="ab"[i % 2]) for i in range(900)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=40)
    plan = plan_of(tmp_path, tmp_path / "x.parquet", shard_bytes=1024, category_field="kind", take={"b": 200})
    assert records_of(plan) == [one for one in rows if one["kind"] == "b"][:200]
    assert len(plan.shards) > 2


def test_formats_are_found_for_each_file(tmp_path: Path) -> None:
    """Files of different formats make one input."""
    write_rows(tmp_path / "a.jsonl", [row(1)])
    write_rows(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "x"}]}])
    plan = plan_of(tmp_path, tmp_path)
    assert list(plan.formats.values()) == ["prompt_completion", "messages"]
    assert plan.schema.names == ["prompt", "completion", "messages"]


def test_an_unknown_format_names_the_file_and_its_columns(tmp_path: Path) -> None:
    """Records of no known format are an error that shows their keys and the formats."""
    path = write_rows(tmp_path / "x.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(DataError, match=r"format of .*x.jsonl: its records have the columns left, right") as caught:
        plan_of(tmp_path, path)
    assert "sharegpt" in caught.value.hint
    assert plan_of(tmp_path, path, prompt_column="left", completion_column="right").num_records == 1


def test_empty_files_are_fine_beside_others(tmp_path: Path) -> None:
    """A file without records adds none; only when all are empty there is nothing to do."""
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.json").write_bytes(b"[]")
    (tmp_path / "c.jsonl").write_bytes(b"\n\n")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"no records in .*a.jsonl.*: empty"):
        plan_of(tmp_path, tmp_path)
    write_rows(tmp_path / "d.jsonl", [row(1)])
    assert plan_of(tmp_path, tmp_path).num_records == 1


def test_a_file_of_nothing_but_bad_lines(tmp_path: Path) -> None:
    """Alone it is an error that shows the first problem; beside good files its lines are rejected records."""
    (tmp_path / "a.jsonl").write_text("garbage\n" * 3)
    with pytest.raises(DataError, match=r"no usable record in .*bad_json: Expecting value at character 1"):
        plan_of(tmp_path, tmp_path)
    write_rows(tmp_path / "b.jsonl", [row(1)])
    assert records_of(plan_of(tmp_path, tmp_path)) == [("bad_json", 1), ("bad_json", 2), ("bad_json", 3), row(1)]


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    """A plan knows its files; a shard knows its bytes."""
    path = write_rows(tmp_path / "x.jsonl", [row(i) for i in range(10)])
    plan = plan_of(tmp_path, path)
    assert plan.verify_unchanged(discover([str(path)])) == []
    new = write_rows(tmp_path / "new.jsonl", [row(1)])
    assert plan.verify_unchanged(discover([str(new), str(path)])) == [str(new)]
    with pytest.raises(DataError, match=r"x\.jsonl is gone"):
        plan.verify_unchanged(discover([str(new)]))
    path.write_bytes(path.read_bytes().replace(b"p3", b"q3"))
    with pytest.raises(DataError, match=r"x.jsonl has changed"):
        plan.verify_unchanged(discover([str(path)]))
    with pytest.raises(DataError, match=r"x.jsonl has changed since this job was planned"):
        read_all(plan)


def test_changed_parquet_is_noticed(tmp_path: Path) -> None:
    """Rows of a rewritten Parquet file are not taken for those planned."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), path)
    plan = plan_of(tmp_path, path)
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["longer"]}), path)
    with pytest.raises(DataError, match="has changed"):
        read_all(plan)


def test_an_input_on_s3(tmp_path: Path, s3: S3Endpoint) -> None:
    """Ranges of JSON lines, Parquet rows and staged arrays are read from S3, staged pieces written there."""
    rows = [row(i) for i in range(200)]
    file_io.write_bytes(s3.uri("in/a.jsonl"), "".join(json.dumps(r) + "\n" for r in rows).encode())
    file_io.write_bytes(s3.uri("in/b.json"), json.dumps(rows, indent=2).encode())
    file_io.write_table(s3.uri("in/c.parquet"), pa.Table.from_pylist(rows), row_group_size=50)
    plan = plan_of(s3.uri("work"), s3.uri("in"), shard_bytes=2048)
    assert records_of(plan) == rows * 3
    assert {shard.source for shard in read_all(plan)} == {s3.uri(f"in/{n}") for n in ("a.jsonl", "b.json", "c.parquet")}
    staged = file_io.list_files(s3.uri("work"))
    assert staged[0] == s3.uri("work/0001-00000.jsonl")
    assert len(staged) > 3
    file_io.write_bytes(s3.uri("in/a.jsonl"), json.dumps(rows[0]).encode())
    with pytest.raises(DataError, match=r"a.jsonl has changed"):
        plan.verify_unchanged(discover([s3.uri("in")]))
