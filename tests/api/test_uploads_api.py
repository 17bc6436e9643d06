"""Datasets over HTTP, under uvicorn: uploads, refusals, and jobs that read them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import resource
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from tests.api.servers import scripted, serving, settings
from tests.jobs import QTUNE, environment
from tests.s3 import S3Endpoint
from tests.scripted_jobs import job_request, submit_job, wait_for_job
from tests.waiting import free_port, wait_until, wait_until_ready

LINE = b'{"prompt": "What is a dalox?", "completion": "It lives in gardens."}\n'
LINES = LINE * 200
LIMIT_BYTES = 1 << 20


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server that takes files of up to a MiB."""
    with serving(settings(tmp_path, max_upload_bytes=LIMIT_BYTES), scripted(tmp_path)) as made:
        yield made


def upload(client: httpx.Client, data: Any = LINES, name: str = "a.jsonl", **headers: str) -> httpx.Response:
    """Send a file; an iterator goes in chunks, without its length."""
    return client.post("/api/v1/datasets", params={"name": name}, content=data, headers=headers)


def files_of(tmp_path: Path) -> list[str]:
    """All files that there are of datasets."""
    root = tmp_path / "datasets"
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_becomes_a_dataset(client: httpx.Client, tmp_path: Path, chunked: bool) -> None:
    """201 with a Location, and all that is known of it; it is listed, shown, and deleted with its file."""
    digest = hashlib.sha256(LINES).hexdigest()
    data = (LINE for _ in range(200)) if chunked else LINES
    response = upload(client, data, **{"X-Checksum-Sha256": digest})
    assert response.status_code == 201, response.text
    made = response.json()
    assert response.headers["location"] == f"/api/v1/datasets/{made['id']}"
    wanted = {"name": "a.jsonl", "size_bytes": len(LINES), "sha256": digest, "format": "jsonl", "rows": 200}
    assert made == made | wanted | {"owner": "local", "uri": f"dataset://{made['id']}", "num_bad_rows": 0}
    assert client.get(response.headers["location"]).json() == made
    assert client.get("/api/v1/datasets").json() == {"datasets": [made], "next_cursor": None}
    assert files_of(tmp_path) == [f"{made['id']}/a.jsonl"]
    assert client.delete(response.headers["location"]).status_code == 204
    assert client.get(response.headers["location"]).status_code == 404
    assert files_of(tmp_path) == []


def arrow() -> bytes:
    """Return an Arrow stream of 200 records."""
    sink, table = pa.BufferOutputStream(), pa.table({"prompt": ["p"] * 200, "completion": ["c"] * 200})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.csv", b"prompt,completion\r\n" + b"p,c\r\n" * 200, "csv"),
        ("a.tsv.bz2", bz2.compress(b"prompt\tcompletion\n" + b"p\tc\n" * 200), "csv"),
        ("a.jsonl.xz", lzma.compress(LINES), "jsonl"),
        ("a.arrow", arrow(), "arrow"),
    ],
)
def test_files_of_other_kinds_become_datasets(client: httpx.Client, name: str, data: bytes, kind: str) -> None:
    """With their kind and their number of records."""
    response = upload(client, data, name)
    assert response.status_code == 201, response.text
    made = response.json()
    assert (made["name"], made["format"], made["rows"]) == (name, kind, 200)


REFUSED: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("a.txt", LINES, {}, 422, "spec"),
    ("a.csv", LINES, {}, 422, "bad_dataset"),
    ("a.arrow", LINES, {}, 422, "bad_dataset"),
    ("a.arrow", b"\xff" * 4 + b"\x10\0\0\0" + b"\xff" * 90, {}, 422, "bad_dataset"),
    ("a", LINES, {}, 422, "spec"),
    ("", LINES, {}, 422, "invalid_request"),
    ("x" * 1001, LINES, {}, 422, "invalid_request"),
    ("a\r\nSet-Cookie: x=y.jsonl", LINES, {}, 422, "spec"),
    ("a\0.jsonl", LINES, {}, 422, "spec"),
    ("a.jsonl", b"", {}, 422, "bad_dataset"),
    ("a.jsonl", b"no\n" * 1000, {}, 422, "bad_dataset"),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-4], {}, 422, "bad_dataset"),
    ("a.jsonl.gz", gzip.compress(b"{}\n" * (1 << 25), mtime=0), {}, 422, "bad_dataset"),
    ("a.parquet", LINES, {}, 422, "bad_dataset"),
    ("a.jsonl", LINES, {"X-Checksum-Sha256": "0" * 64}, 422, "checksum_mismatch"),
    ("a.jsonl", LINES, {"X-Checksum-Sha256": "zz"}, 422, "invalid_request"),
    ("a.jsonl", LINE * (LIMIT_BYTES // len(LINE) + 1), {}, 413, "too_large"),
    ("a.jsonl", LINES, {"Content-Length": str(1 << 40)}, 413, "too_large"),
]


@pytest.mark.parametrize(("name", "data", "headers", "status", "code"), REFUSED)
def test_refusals(
    client: httpx.Client, tmp_path: Path, name: str, data: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """Each with its status and code; nothing stays."""
    if "Content-Length" in headers:
        answer = _announce(client, int(headers["Content-Length"]))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    else:
        response = upload(client, data, name, **headers)
        assert (response.status_code, response.json()["code"]) == (status, code)
    assert files_of(tmp_path) == []
    assert client.get("/api/v1/datasets").json()["datasets"] == []


def _announce(client: httpx.Client, length: int) -> bytes:
    """Say how long a file is, wait for a word to begin, and see what comes."""
    with _begun(client, f"Content-Length: {length}\r\nExpect: 100-continue") as connection:
        return connection.recv(4096)


def _begun(client: httpx.Client, headers: str) -> socket.socket:
    """Begin an upload whose body does not come."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10)
    host = f"Host: {client.base_url.host}:{client.base_url.port}"
    connection.sendall(f"POST /api/v1/datasets?name=a.jsonl HTTP/1.1\r\n{host}\r\n{headers}\r\n\r\n".encode())
    return connection


def test_too_many_bytes_are_refused_while_they_come(client: httpx.Client, tmp_path: Path) -> None:
    """A sender that does not say how many there will be sees the refusal, too."""
    response = upload(client, (LINES for _ in range(1000)))
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert files_of(tmp_path) == []


def test_a_sender_that_goes_away_leaves_nothing(client: httpx.Client, tmp_path: Path) -> None:
    """The file that was arriving is gone soon after its connection."""
    with _begun(client, "Transfer-Encoding: chunked") as connection:
        connection.sendall(b"%x\r\n%s\r\n" % (len(LINES), LINES))
        wait_until(lambda: len(files_of(tmp_path)) == 1, 60)
    wait_until(lambda: files_of(tmp_path) == [], 60)
    assert upload(client).status_code == 201


# --- jobs


def test_a_job_reads_a_dataset(client: httpx.Client, tmp_path: Path) -> None:
    """Its spec shows the dataset, its driver gets the folder; no other input is allowed to be there."""
    made = upload(client).json()
    job = submit_job(client, tmp_path, input={"paths": [made["uri"]]})
    assert job["spec"]["input"]["paths"] == [made["uri"]]
    assert wait_for_job(client, job["id"], "succeeded")["spec"]["input"]["paths"] == [made["uri"]]
    given = httpx.Response(200, content=(tmp_path / "jobs" / f"{job['id']}.json").read_bytes()).json()
    (folder,) = given["input"]["paths"]
    assert [path.name for path in Path(folder).iterdir()] == ["a.jsonl"]
    again = client.post(f"/api/v1/jobs/{job['id']}/reprune", json={})
    assert again.json()["spec"]["input"]["paths"] == [made["uri"]]
    refused = client.post("/api/v1/jobs", json=job_request(tmp_path, input={"paths": [folder]}))
    assert refused.json()["code"] == "not_allowed"


def test_a_dataset_in_use_stays(client: httpx.Client, tmp_path: Path) -> None:
    """409 until its job has ended; then a resume is refused, since there is nothing to read."""
    made = upload(client).json()
    job = submit_job(client, tmp_path, "sleep", input={"paths": [made["uri"]]})["id"]
    place = f"/api/v1/datasets/{made['id']}"
    refused = client.delete(place)
    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
    wait_for_job(client, job, "running")
    assert client.delete(place).status_code == 409
    client.post(f"/api/v1/jobs/{job}/cancel")
    wait_for_job(client, job, "cancelled")
    assert client.delete(place).status_code == 204
    resumed = client.post(f"/api/v1/jobs/{job}/resume")
    assert (resumed.status_code, resumed.json()["code"]) == (422, "unknown_dataset")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("dataset://01m81mn7t0fzx1sg1h406fwtnb", 422, "unknown_dataset"),
        ("dataset://../jobs", 403, "not_allowed"),
        ("dataset://01m81mn7t0fzx1sg1h406fwtnb/../..", 403, "not_allowed"),
        ("dataset://", 403, "not_allowed"),
    ],
)
def test_datasets_that_there_are_not(client: httpx.Client, tmp_path: Path, path: str, status: int, code: str) -> None:
    """The field is named, and no job is made."""
    refused = client.post("/api/v1/jobs", json=job_request(tmp_path, input={"paths": [path]}))
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert refused.json()["detail"].startswith("input.paths: ")
    assert client.get("/api/v1/jobs").json()["jobs"] == []


# --- disks, deaths, object stores


@contextmanager
def _started(command: list[str], port: int, **more: Any) -> Iterator[tuple[httpx.Client, int]]:
    """Run a server in a process of its own and yield its client once it answers."""
    process = subprocess.Popen(command, env=environment(), **more)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _serve(root: Path, port: int) -> list[str]:
    return [*QTUNE, "serve", "--data-root", str(root), "--port", str(port)]


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 21, 1 << 21))


def test_a_full_disk_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    """507 where no more can be written, with a hint; smaller files still go in."""
    port = free_port()
    with _started(_serve(tmp_path, port), port, preexec_fn=_small_files) as (client, _):
        refused = upload(client, (LINES for _ in range(200)))
        assert (refused.status_code, refused.json()["code"]) == (507, "disk_full"), refused.text
        assert refused.json()["hint"]
        assert files_of(tmp_path) == []
        assert upload(client).status_code == 201


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small disk")
def test_a_disk_that_runs_full_on_the_way(tmp_path: Path) -> None:
    """The real thing: a disk of 12 MiB of which 16 are wanted, announced or not."""
    mount = f"mount -t tmpfs -o size=12m none {tmp_path}"
    apart = ["unshare", "-m", "sh", "-c"]
    probe = subprocess.run([*apart, mount], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    port = free_port()
    serve = f"{mount} && exec {shlex.join(_serve(tmp_path, port))}"
    with _started([*apart, serve], port) as (client, pid):
        for data in ((LINES for _ in range((16 << 20) // len(LINES))), LINES * ((16 << 20) // len(LINES))):
            refused = upload(client, data)
            assert (refused.status_code, refused.json()["code"]) == (507, "disk_full"), refused.text
            assert files_of(Path(f"/proc/{pid}/root{tmp_path}")) == []
        assert upload(client).status_code == 201


def test_a_killed_server_leaves_nothing_for_long(tmp_path: Path) -> None:
    """Kill -9 in the middle of an upload: the next server begins by clearing up."""
    port = free_port()
    with _started(_serve(tmp_path, port), port) as (client, pid):
        kept = upload(client).json()["id"]
        with _begun(client, "Transfer-Encoding: chunked") as connection:
            connection.sendall(b"%x\r\n%s\r\n" % (len(LINES), LINES))
            wait_until(lambda: len(files_of(tmp_path)) == 2, 60)
            os.kill(pid, signal.SIGKILL)
    assert len(files_of(tmp_path)) == 2
    with _started(_serve(tmp_path, port), port):
        assert files_of(tmp_path) == [f"{kept}/a.jsonl"]


def test_datasets_in_an_object_store(tmp_path: Path, s3: S3Endpoint) -> None:
    """They arrive here, are sent on when they are whole, and jobs get their URI."""
    chosen = settings(tmp_path, datasets_root=s3.uri("sets"))
    with serving(chosen, scripted(tmp_path)) as client:
        assert upload(client, b"no\n" * 900).status_code == 422
        assert s3.keys("sets") == []
        made = upload(client).json()
        assert s3.keys("sets") == [f"sets/{made['id']}/a.jsonl"]
        assert list((tmp_path / "arrivals").iterdir()) == []
        job = submit_job(client, tmp_path, input={"paths": [made["uri"]]})["id"]
        wait_for_job(client, job, "succeeded")
        given = (tmp_path / "jobs" / f"{job}.json").read_text()
        assert f'"paths": ["{s3.uri("sets")}/{made["id"]}"]' in given
        assert client.delete(f"/api/v1/datasets/{made['id']}").status_code == 204
        assert [key for key in s3.keys("sets") if not key.endswith("/")] == []
