"""ingest/reader.py: the first records as a job would read them, and no more of the input than that."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from qtune_service.config import InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.jsonl import RecordProblem
from qtune_service.ingest.planner import make_plan, scan, split
from qtune_service.ingest.reader import FirstRecord, first_records, read_shard

ROWS: list[dict[str, Any]] = [{"prompt": f"p{i}", "completion": "c", "kind": "ab"[i % 2]} for i in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(folder: Path) -> None:
    """Write the same records in every form."""
    (folder / "a.jsonl").write_text(LINES.replace("\n", "\n\n", 1))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "c.json").write_text(json.dumps(ROWS))
    (folder / "d.json").write_text(json.dumps({key: dict(enumerate(r[key] for r in ROWS)) for key in ROWS[0]}))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "e.parquet")
    feather.write_feather(pa.Table.from_pylist(ROWS), folder / "f.arrow", chunksize=170)
    cells = "".join(f'{row["prompt"]},"{row["completion"]}",{row["kind"]}\r\n' for row in ROWS)
    (folder / "g.csv.xz").write_bytes(lzma.compress(f"prompt,completion,kind\r\n\r\n{cells}".encode()))
    (folder / "h.json.bz2").write_bytes(bz2.compress(json.dumps({"version": 1, "data": ROWS}).encode()))
    (folder / "i.json").write_text(json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}))
    (folder / "j.jsonl").write_text("".join(json.dumps(row, indent=1) + "\n" for row in ROWS))


def of_a_job(spec: InputSpec, work: Path) -> list[tuple[Any, ...]]:
    """Return the records that a job reads: id, source, line, format, record."""
    files = discover(spec.paths)
    chunks = split(files, spec)
    plan = make_plan(files, chunks, [scan(chunk, spec, work=str(work)) for chunk in chunks], spec)
    found = []
    for shard in plan.shards:
        read = read_shard(plan, shard)
        places = zip(read.sample_ids, read.lines, read.records, strict=True)
        found += [(sample_id, read.source, line, shard.format, record) for sample_id, line, record in places]
    return found


def plain(found: list[FirstRecord]) -> list[tuple[Any, ...]]:
    """Return first records in the same form."""
    return [(one.sample_id, one.source, one.line, one.format, one.record) for one in found]


@pytest.mark.parametrize("name", [
    "a.jsonl", "b.jsonl.gz", "c.json", "d.json", "e.parquet", "f.arrow", "g.csv.xz", "h.json.bz2", "i.json", "j.jsonl",
    ".",
])  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"limit": 7}, {"category_field": "kind", "take": {"b": 9, "a": 2}}])
def test_they_are_those_that_a_job_reads(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    """Of every kind of file, with limits and categories: same ids, lines, formats and contents."""
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    spec = InputSpec(paths=(str(data / name),), **more)
    wanted = of_a_job(spec, tmp_path / "work")[:50]
    for one in wanted:
        one[4].setdefault("kind", "ab"[int(one[4]["prompt"][1:]) % 2])  # a job reads no more columns of Parquet
    assert plain(first_records(spec, 50)) == wanted


def test_no_more_is_read_than_is_wanted(tmp_path: Path) -> None:
    """What follows may be damaged, or gone: nobody looks."""
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    spec = InputSpec(paths=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")))
    assert len(first_records(spec, 200)) == 200
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 500)[:-9])
    assert len(first_records(InputSpec(paths=(str(tmp_path / "c.jsonl.gz"),)), 200)) == 200


def test_records_that_cannot_be_read_are_among_them(tmp_path: Path) -> None:
    """A job rejects them; so they are seen."""
    (tmp_path / "a.jsonl").write_text("{\n" + LINES)
    first, second = first_records(InputSpec(paths=(str(tmp_path / "a.jsonl"),)), 2)
    assert isinstance(first.record, RecordProblem)
    assert second.record == ROWS[0]


@pytest.mark.parametrize(
    ("text", "more", "told"),
    [
        ("\n", {}, "no records"),
        (LINES, {"category_field": "kind", "take": {"z": 1}}, "no records"),
        ('{"x": 1}\n', {}, "cannot detect the format"),
        (LINES, {"prompt_column": "question", "completion_column": "answer"}, "there is no column 'question'"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, text: str, more: dict[str, Any], told: str) -> None:
    """With what to do."""
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=told) as caught:
        first_records(InputSpec(paths=(str(tmp_path / "a.jsonl"),), **more), 5)
    assert caught.value.hint
