"""Datasets (server/jobs/datasets.py, uploads.py): both databases, their files, and the leftovers of killed servers."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from qtune_service.errors import (
    DatabaseError,
    DatasetInUseError,
    NotFoundError,
    QTuneError,
    SpecError,
    UnknownDatasetError,
)
from qtune_service.ingest.upload_checks import rows_of_file
from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.database import open_database
from qtune_service.server.jobs.dataset_uris import id_of_uri, resolved
from qtune_service.server.jobs.datasets import Dataset, DatasetStore
from qtune_service.server.jobs.ids import new_id
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.jobs.uploads import MAX_NAME_BYTES, Datasets, Upload, clean_name

LINES = b'{"prompt": "a", "completion": "b"}\n' * 10


@pytest.fixture
def datasets(database: Engine, tmp_path: Path) -> Datasets:
    """Return a folder of datasets without any."""
    return Datasets(DatasetStore(database), str(tmp_path / "data"), tmp_path / "data", 1 << 20, rows_of_file)


def add(datasets: Datasets, name: str = "a.jsonl", owner: str = "ann") -> Dataset:
    """Upload one."""
    return datasets.receive(Upload(name, owner), iter([LINES]))


def job_of(*paths: str, **more: Any) -> NewJob:
    """Return a job that reads these datasets."""
    spec = {"input": {"paths": list(paths)}, "model": {"name": "m"}, "output": {"path": "out"}, **more}
    return NewJob("a job", spec, f"out/{new_id()}", "ann", "local")


def test_a_dataset_comes_back_as_it_went_in(datasets: Datasets, tmp_path: Path) -> None:
    """Its file lies under its name in a folder of its id."""
    made = add(datasets)
    assert datasets.store.get(made.id) == made
    assert (made.name, made.owner, made.format, made.rows, made.num_bad_rows) == ("a.jsonl", "ann", "jsonl", 10, 0)
    assert (made.size_bytes, made.sha256) == (len(LINES), hashlib.sha256(LINES).hexdigest())
    assert (tmp_path / "data" / made.id / "a.jsonl").read_bytes() == LINES


def test_pages_cover_every_dataset_once(datasets: Datasets) -> None:
    """The newest first."""
    made = [add(datasets).id for _ in range(5)]
    first = datasets.store.find(limit=3)
    rest = datasets.store.find(limit=3, cursor=first.next_cursor)
    assert [one.id for one in (*first.datasets, *rest.datasets)] == made[::-1]
    assert rest.next_cursor is None
    with pytest.raises(SpecError, match="cursor"):
        datasets.store.find(cursor="x")


def test_a_dataset_stays_while_a_job_reads_it(datasets: Datasets, store: JobStore, tmp_path: Path) -> None:
    """Waiting or running; then it goes, with its file, and jobs that would read it are refused."""
    made, other = add(datasets), add(datasets)
    job, _ = store.create(job_of("elsewhere.jsonl", made.uri))
    for _ in range(2):
        with pytest.raises(DatasetInUseError, match=job.id):
            datasets.delete(made.id)
        store.claim(1)
    datasets.delete(other.id)
    store.move(job.id, JobStatus.failed)
    datasets.delete(made.id)
    assert [path.name for path in (tmp_path / "data").iterdir()] == []
    with pytest.raises(NotFoundError, match=made.id):
        datasets.delete(made.id)
    with pytest.raises(UnknownDatasetError, match=f"input.paths: there is no dataset {made.id}"):
        store.move(job.id, JobStatus.queued)
    assert store.get(job.id).status is JobStatus.failed
    with pytest.raises(UnknownDatasetError):
        store.create(job_of(made.uri))


def test_a_job_that_has_its_scores_needs_no_dataset(datasets: Datasets, store: JobStore) -> None:
    """It names its input as the earlier job did, and reads nothing of it."""
    made = add(datasets)
    store.create(job_of(made.uri, from_scores="out"))
    datasets.delete(made.id)
    store.create(job_of(made.uri, from_scores="out"))


def test_no_job_is_left_without_its_dataset(datasets: Datasets, store: JobStore) -> None:
    """However deleting and submitting meet: one of them is refused."""
    for _ in range(8):
        made = add(datasets)
        with ThreadPoolExecutor(2) as pool:
            acts: list[Future[Any]] = [pool.submit(datasets.delete, made.id)]
            acts.append(pool.submit(store.create, job_of(made.uri)))
        refused = [type(act.exception()) for act in acts if act.exception() is not None]
        assert refused in ([DatasetInUseError], [UnknownDatasetError])


def test_only_whole_ids_are_datasets() -> None:
    """What looks like one, and is a path, is none."""
    one = new_id()
    assert id_of_uri(f"dataset://{one}") == one
    for path in (one, f"dataset://{one}/x", f"dataset://{one}\n", "dataset://..", "dataset://", f"/dataset://{one}"):
        assert id_of_uri(path) is None, path


def test_drivers_get_the_folder(tmp_path: Path) -> None:
    """Other paths stay."""
    one = new_id()
    spec = {"input": {"paths": ["a.jsonl", f"dataset://{one}"], "limit": 3}, "model": {}}
    wanted = {"input": {"paths": ["a.jsonl", f"/data/{one}"], "limit": 3}, "model": {}}
    assert resolved(spec, "/data") == wanted
    assert resolved(spec, "s3://bucket/data/")["input"]["paths"][1] == f"s3://bucket/data/{one}"


# --- names


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/x.jsonl", "x.jsonl"),
        ("C:\\data\\x.Parquet", "x.Parquet"),
        ("größe (1).json.gz", "größe (1).json.gz"),
        (".hidden.jsonl", "hidden.jsonl"),
        ("__x.jsonl", "x.jsonl"),
        (".jsonl", "data.jsonl"),
        ("/.jsonl", "data.jsonl"),
        ("a*?[b].jsonl", "a___b_.jsonl"),
        ("a:b<c>|d\"'.jsonl", "a_b_c__d__.jsonl"),
        ("x" * 900 + ".jsonl.zst", "x" * (MAX_NAME_BYTES - 10) + ".jsonl.zst"),
        ("漢" * 300 + ".jsonl", "漢" * 64 + ".jsonl"),
    ],
)
def test_names_are_made_harmless(name: str, kept: str) -> None:
    """The last part, of letters that every disk can hold, never hidden, with its ending."""
    assert clean_name(name) == kept
    assert len(kept.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    "name", ["", "x", "x.txt", "x.jsonl/", "..", "jsonl", "x.jsonl.lz4", "a\r\nb.jsonl", "a\0.jsonl"]
)
def test_names_that_say_nothing_are_refused(name: str) -> None:
    """Without an ending that is known, or with control characters."""
    with pytest.raises(SpecError, match="name: "):
        clean_name(name)


# --- files


def test_nothing_stays_of_what_fails(datasets: Datasets, tmp_path: Path) -> None:
    """A sender that goes away, a bad file, a wrong checksum, too many bytes, a database that is away."""

    def cut_off() -> Iterator[bytes]:
        yield LINES
        raise ConnectionError

    def try_one(upload: Upload, blocks: Iterator[bytes], where: Datasets = datasets) -> None:
        with pytest.raises((QTuneError, ConnectionError)):
            where.receive(upload, blocks)
        assert list((tmp_path / "data").iterdir()) == []

    away = DatasetStore(open_database("postgresql://me@127.0.0.1:1/x"))
    try_one(Upload("a.jsonl", "ann"), cut_off())
    try_one(Upload("a.jsonl", "ann"), iter([b"[]"]))
    try_one(Upload("a.jsonl", "ann", sha256="0" * 64), iter([LINES]))
    try_one(Upload("a.jsonl", "ann"), iter([LINES] * 4000))
    try_one(Upload("a.jsonl", "ann", size_bytes=1 << 21), iter([LINES]))
    try_one(
        Upload("a.jsonl", "ann"),
        iter([LINES]),
        Datasets(away, datasets.root, datasets.arrivals, 1 << 20, rows_of_file),
    )
    assert datasets.store.find().datasets == ()
    with pytest.raises(DatabaseError):
        away.find()


def test_the_checksum_may_be_in_capitals(datasets: Datasets) -> None:
    """As some tools write it."""
    datasets.receive(Upload("a.jsonl", "ann", sha256=hashlib.sha256(LINES).hexdigest().upper()), iter([LINES]))


def test_what_killed_servers_left_is_swept(datasets: Datasets, tmp_path: Path) -> None:
    """What is arriving at another server, and what the database knows, stays."""
    root = tmp_path / "data"
    kept = add(datasets)
    (root / f".{new_id()}.upload").write_bytes(LINES)
    unknown = root / new_id()
    unknown.mkdir()
    (unknown / "a.jsonl").write_bytes(LINES)
    (root / f".{unknown.name}.publishing").touch()
    (root / f".{new_id()}.publishing").touch()
    lost = root / new_id()  # of a database that was lost: no server was about to publish it
    lost.mkdir()
    (lost / "a.jsonl").write_bytes(LINES)
    (root / "somebody's").mkdir()
    arriving, publishing = root / f".{new_id()}.upload", root / new_id() / "b.jsonl"
    publishing.parent.mkdir()
    (root / f".{publishing.parent.name}.publishing").touch()
    with arriving.open("wb") as one, publishing.open("wb") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(two, fcntl.LOCK_EX)
        datasets.sweep()
        left = {path.name for path in root.iterdir()}
    marked = f".{publishing.parent.name}.publishing"
    assert left == {kept.id, lost.name, "somebody's", arriving.name, publishing.parent.name, marked}
    assert (lost / "a.jsonl").exists()
