"""Tests of the scan of an input: requests for many files, contents that are not as named, a killed driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import DataError
from qtune_service.ingest import discovery
from qtune_service.ingest.plan import Chunk, Plan
from qtune_service.output.layout import Output
from qtune_service.output.removal import drop_working_files
from qtune_service.pipeline import scan_stage
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.prepare import find_input, plan_shards
from qtune_service.pipeline.progress import Snapshot, Tracker
from qtune_service.storage import file_io
from tests.s3 import Faults, S3Endpoint, faulty, s3_bucket
from tests.unit.ingest.planning import plan_of, records_of
from tests.waiting import wait_until

NUM_FILES = 400


class Sink:
    """Keeps what is said and the last count."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.last = Snapshot()

    def show(self, snapshot: Snapshot) -> None:
        """Keep the count."""
        self.last = snapshot

    def say(self, text: str) -> None:
        """Keep the text."""
        self.said.append(text)

    def close(self) -> None:
        """Do nothing."""


def spec_of(output: Path | str, *paths: Path | str, **options: Any) -> JobSpec:
    """Return the spec of a job whose model is never loaded."""
    return JobSpec(
        input=InputSpec(paths=tuple(map(str, paths)), **options),
        model=ModelSpec(name="unused"),
        output=OutputSpec(path=str(output)),
    )


def plan_job(spec: JobSpec, sink: Sink | None = None) -> Plan:
    """Plan a job, or read its plan, as a driver does."""
    output = Output(spec.output.path)
    plan, _ = plan_shards(spec, find_input(spec, output), output, LocalExecutor(), Tracker(sink or Sink()))
    return plan


def line(number: int) -> bytes:
    return json.dumps({"prompt": f"p{number}", "completion": "c"}).encode() + b"\n"


# --- many files


@pytest.fixture
def counted(s3_url: str) -> Iterator[tuple[S3Endpoint, Faults]]:
    """Yield a bucket and a proxy before it that counts requests."""
    with s3_bucket(s3_url) as behind, faulty(behind) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint.url
        yield behind, proxy


def test_many_files_cost_one_read_each(counted: tuple[S3Endpoint, Faults], tmp_path: Path) -> None:
    """Files of a folder cost a HEAD and a GET in the scan, and none before it; a driver that resumes opens no file."""
    bucket, proxy = counted
    client = bucket.client()
    with ThreadPoolExecutor(8) as pool:
        names = [f"in/{i:06}.jsonl" for i in range(NUM_FILES)]
        put = lambda i: client.put_object(Bucket=bucket.bucket, Key=names[i], Body=line(i))  # noqa: E731
        list(pool.map(put, range(NUM_FILES)))
    spec = spec_of(tmp_path / "out", bucket.uri("in"))
    given = find_input(spec, Output(spec.output.path))
    assert len(given.found.files) == NUM_FILES
    of_files = {name: count for name, count in proxy.requests.items() if name.endswith(".jsonl")}
    assert not of_files, "listed without a request for a file"
    listings = sum(proxy.requests.values())
    assert listings < 12
    plan = plan_job(spec)
    assert plan.num_records == NUM_FILES
    for method in ("HEAD", "GET"):
        counts = [proxy.requests[f"{method} /{bucket.bucket}/{name}"] for name in names]
        assert set(counts) == {1}, method
    proxy.requests.clear()
    assert plan_job(spec).num_records == NUM_FILES
    assert sum(proxy.requests.values()) < 12, "the listing alone shows that nothing changed"
    bucket.put("in/000007.jsonl", line(8))  # the same size, perhaps within the same second
    versions = {file.version for file in plan.files}
    assert len(versions) > NUM_FILES - 2, "the plan has the ETags of what was read"
    with pytest.raises(DataError, match=r"000007.jsonl has changed"):
        records_of(plan)


def files_of(folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write a file of each kind, all with the suffix of JSON lines."""
    folder.mkdir()
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(30)]
    for number, kind in enumerate(kinds):
        path = folder / f"{number:03}.jsonl"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
        elif kind == "array":
            path.write_text(json.dumps(rows, indent=1))
        elif kind == "gzip":
            import gzip

            path.write_bytes(gzip.compress(b"".join(map(line, range(30)))))
        else:
            path.write_bytes(b"".join(map(line, range(30))))
    return sorted(folder.iterdir())


def test_contents_take_precedence_also_among_many_files(tmp_path: Path) -> None:
    """Files that are not what their suffix says are read by their content, with the plan of checked files."""
    files_of(tmp_path / "in", ["lines", "parquet", "array", "lines", "gzip", "lines"])
    listed = plan_of(tmp_path / "a", tmp_path / "in", max_checked=0, shard_bytes=1024)
    checked = plan_of(tmp_path / "b", tmp_path / "in", shard_bytes=1024)
    assert records_of(listed) == records_of(checked)
    assert [(file.kind, file.compression, file.version) for file in listed.files] == [
        (file.kind, file.compression, file.version) for file in checked.files
    ]
    assert listed.verify_unchanged(checked.files) == []


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow"])
def test_wrong_files_are_refused_by_name_also_among_many(tmp_path: Path, suffix: str) -> None:
    """The sentence about a file that cannot be read is the same whether it was opened before or in the scan."""
    files_of(tmp_path / "in", ["lines"] * 3)
    (tmp_path / "in" / f"x.{suffix}").write_bytes(b"%PDF-1.4 no data")
    told = []
    for max_checked in (0, 256):
        with pytest.raises(DataError) as caught:
            plan_of(tmp_path / "work", tmp_path / "in", max_checked=max_checked)
        told.append((caught.value.message, caught.value.hint))
    assert told[0] == told[1]
    assert f"x.{suffix}" in told[0][0]


def test_parquet_files_among_many_are_cut_in_the_scan(tmp_path: Path) -> None:
    """Each footer is read by the scan of its file, which gives the shards of its row groups, small and large."""
    (tmp_path / "in").mkdir()
    rows = [{"prompt": f"p{i}" * 50, "completion": "c"} for i in range(200)]
    for number in range(4):
        path = tmp_path / "in" / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20 if number % 2 else 200)
    plan = plan_of(tmp_path / "work", tmp_path / "in", max_checked=0, shard_bytes=2048)
    assert records_of(plan) == rows * 4
    assert {shard.kind for shard in plan.shards} == {"parquet", "arrow"}


# --- markers

DRIVER = """
import sys, time
from pathlib import Path
from qtune_service.pipeline import scan_stage
from tests.unit.pipeline.test_scan_stage import plan_job, spec_of
scan_stage.SMALL_INPUT_BYTES = 0
def slow(chunk, **more):
    time.sleep(0.02)
    return scan(chunk, **more)
scan, scan_stage.scan = scan_stage.scan, slow
plan_job(spec_of(sys.argv[1], sys.argv[2], shard_bytes=1024))
"""


def test_a_killed_driver_repeats_what_was_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans that were finished are taken over. The plan is that of a driver that was not killed."""
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    path.write_bytes(b"".join(map(line, range(20_000))))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, out, path])
    markers = out / "_qtune" / scan_stage.MARKERS
    wait_until(lambda: markers.is_dir() and len(list(markers.glob("*.json"))) >= 10, 120)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (out / "_qtune" / "plan.json").exists()
    monkeypatch.setattr(scan_stage, "SMALL_INPUT_BYTES", 0)
    scanned: list[int] = []
    plain = vars(scan_stage)["scan"]

    def counting(chunk: Chunk, **more: Any) -> Any:
        scanned.append(chunk.index)
        return plain(chunk, **more)

    monkeypatch.setattr(scan_stage, "scan", counting)
    finished = [json.loads(marker.read_bytes()) for marker in markers.glob("[!.]*.json")]
    kept = {scan["index"] for scans in finished for scan in scans}
    plan = plan_job(spec_of(out, path, shard_bytes=1024), sink := Sink())
    assert len(kept) >= 10
    assert kept.isdisjoint(scanned)
    assert sorted(kept | set(scanned)) == list(range(len(plan.shards)))
    assert sink.last.done == sink.last.total == len(plan.shards)
    assert plan == plan_job(spec_of(tmp_path / "other", path, shard_bytes=1024))
    output = Output(str(out))
    drop_working_files(output)
    assert not markers.exists()


def test_markers_of_other_content_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changed, and a marker that cannot be read, are scanned again."""
    monkeypatch.setattr(scan_stage, "SMALL_INPUT_BYTES", 0)
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    path.write_bytes(b"".join(map(line, range(500))))
    spec = spec_of(out, path, shard_bytes=1024)
    plan_job(spec)
    (out / "_qtune" / "plan.json").unlink()
    path.write_bytes(b"".join(map(line, range(500, 1000))))
    os.utime(path, ns=(1, 1))
    plan = plan_job(spec)
    assert records_of(plan)[0]["prompt"] == "p500"
    (out / "_qtune" / "plan.json").unlink()
    for marker in (out / "_qtune" / scan_stage.MARKERS).iterdir():
        marker.write_text("{}")
    assert plan_job(spec) == plan


def test_a_small_input_leaves_no_marker(tmp_path: Path) -> None:
    """The driver scans it itself and writes the plan alone."""
    (tmp_path / "x.jsonl").write_bytes(b"".join(map(line, range(500))))
    plan_job(spec_of(tmp_path / "out", tmp_path / "x.jsonl"))
    assert [path.name for path in (tmp_path / "out" / "_qtune").iterdir()] == ["plan.json"]


def test_batches_hold_every_chunk_once() -> None:
    """Batches follow the order of the chunks. They are bounded in bytes and in number, and large chunks stand alone."""
    file = discovery.SourceFile("x", "jsonl", None, 1 << 40, "1")
    sizes = [16 << 20] * 1000 + [100] * 3000
    chunks = [Chunk(i, 0, file, 0, size, 1) for i, size in enumerate(sizes)]
    batches = list(scan_stage.batched(chunks))
    assert [chunk for batch in batches for chunk in batch] == chunks
    assert max(sum(chunk.stop for chunk in batch) for batch in batches) <= scan_stage.BATCH_BYTES
    assert 64 <= len(batches) < 400
    assert [len(batch) for batch in scan_stage.batched(chunks[:10])] == [1] * 10


# --- streams


def test_a_long_stream_is_named_with_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large plain gzip file is named before it is read and in the warnings, with the remedy; others are not."""
    import gzip

    from qtune_service.pipeline import prepare

    monkeypatch.setattr(prepare, "LONG_STREAM_BYTES", 1000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(b"".join(map(line, range(500))))
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(map(line, range(2000)))))
    plan = plan_job(spec_of(tmp_path / "out", tmp_path / "in"), sink := Sink())
    (told,) = sink.said
    assert told.startswith(f"{tmp_path}/in/b.jsonl.gz is one gzip stream of 0.0 GB, which cannot be split: ")
    assert "bgzip" in told
    assert plan.notices == (told,)
    assert file_io.exists(str(tmp_path / "out" / "_qtune" / "plan.json"))
