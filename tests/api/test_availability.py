"""What keeps a server answering: probes without threads, slots and rates of uploads, lists without specs, logs."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from qtune_service.errors import UnknownDatasetError
from qtune_service.job_states import JobStatus
from qtune_service.server import metrics
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, reading, upgrade, writing
from qtune_service.server.jobs.dataset_uris import require_datasets
from qtune_service.server.jobs.datasets import DatasetStore, NewDataset
from qtune_service.server.jobs.ids import new_id
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.routes import datasets as dataset_routes
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.jobs import QTUNE, environment
from tests.waiting import free_port, wait_until, wait_until_ready

LINE = b'{"text": "a"}\n'


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server without tokens."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made:
        yield made


def test_probes_need_no_worker_thread(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads wait for something; /healthz and /readyz answer all the same."""
    ended = threading.Event()

    def wait(*_: Any, **__: Any) -> Any:
        assert ended.wait(60)
        return []

    monkeypatch.setattr(JobStore, "find", wait)
    with httpx.Client(base_url=client.base_url, timeout=60, limits=httpx.Limits(max_connections=60)) as many:
        threads = [threading.Thread(target=many.get, args=("/api/v1/jobs",)) for _ in range(45)]
        for thread in threads:
            thread.start()
        try:
            with pytest.raises(httpx.ReadTimeout):
                client.get("/api/v1/datasets", timeout=1)
            for path in ("/healthz", "/readyz"):
                assert client.get(path, timeout=3).status_code == 200
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def test_a_probe_of_a_database_that_hangs_is_bounded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 after the limit; probes that come meanwhile wait for the same question; then all is as before."""
    ended, asked = threading.Event(), []

    def hang(_self: Any) -> None:
        asked.append(1)
        assert ended.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Readiness, "_select", hang)
        patch.setattr(metrics, "LIMIT_S", 0.5)
        answers = [client.get("/readyz", timeout=5) for _ in range(3)]
        assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "database")] * 3
        assert client.get("/healthz", timeout=2).status_code == 200
        assert len(asked) == 1
        ended.set()
        time.sleep(0.2)
    assert client.get("/readyz").status_code == 200


# --- uploads


@contextmanager
def uploading(client: httpx.Client, token: str = "") -> Iterator[socket.socket]:
    """Begin an upload whose body does not come."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST /api/v1/datasets?name=a.jsonl HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        yield connection


def test_a_slow_upload_is_given_up(client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 for a byte now and then, which never is silent for a minute; nothing stays."""
    monkeypatch.setattr(dataset_routes, "WINDOW_S", 1.0)
    monkeypatch.setattr(dataset_routes, "DRAIN_S", 0.2)
    with uploading(client) as connection:
        connection.settimeout(0.1)
        answer, began = b"", time.monotonic()
        while not answer and time.monotonic() - began < 20:
            connection.sendall(b"1\r\n{\r\n")
            try:
                answer = connection.recv(1 << 16)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b'"code":"too_slow"' in answer
    assert [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()] == []


def test_an_upload_that_is_fast_enough_arrives(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several windows; and pauses of the server's own do not count."""
    monkeypatch.setattr(dataset_routes, "WINDOW_S", 0.4)
    monkeypatch.setattr(dataset_routes, "WINDOW_BYTES", 1000)

    def blocks() -> Iterator[bytes]:
        for _ in range(8):
            time.sleep(0.2)
            yield LINE * 200

    made = client.post("/api/v1/datasets?name=a.jsonl", content=blocks())
    assert (made.status_code, made.json()["rows"]) == (201, 1600)


def test_one_owner_cannot_hold_all_slots(tmp_path: Path) -> None:
    """Silent uploads of one token, more than there are slots, do not keep another token's from arriving."""
    database = open_database(f"sqlite:///{tmp_path}/qtune.db")
    upgrade(database)
    ann, bob = (TokenStore(database).create(name, Scope.submit)[1] for name in ("ann", "bob"))
    with serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client, ExitStack() as stack:
        silent = [stack.enter_context(uploading(client, ann)) for _ in range(12)]
        for one in silent:
            one.sendall(b"%x\r\n%s\r\n" % (len(LINE), LINE))
        wait_until(lambda: len(list((tmp_path / "datasets").glob(".*.upload"))) >= 4)
        headers = {"Authorization": f"Bearer {bob}"}
        made = client.post("/api/v1/datasets?name=a.jsonl", content=LINE * 30, headers=headers, timeout=10)
        assert made.status_code == 201
        assert len(list((tmp_path / "datasets").glob(".*.upload"))) == 4
        for one in silent[:1]:
            one.sendall(b"0\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 201 "), "whoever waited is served when a slot is free"


# --- lists and queries


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that an engine executes."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_lists_and_events_have_no_specs(client: httpx.Client, tmp_path: Path) -> None:
    """The model's name is there, a job by its id has the spec, and answers stay small whatever specs are like."""
    spec = {
        "input": {"paths": [f"/x/{i:0100d}" for i in range(2000)]},
        "model": {"name": "Qwen/x"},
        "output": {"path": "/o"},
    }
    jobs = [store_job(database_of(tmp_path), "/o", JobStatus.cancelled, spec) for _ in range(20)]
    listed = client.get("/api/v1/jobs?limit=200")
    assert len(listed.content) < 20_000
    for job in listed.json()["jobs"]:
        assert ("spec" in job, job["model"]) == (False, "Qwen/x")
    whole = client.get(f"/api/v1/jobs/{jobs[0]}").json()
    assert whole["spec"] == spec
    events = client.get(f"/api/v1/jobs/{jobs[0]}/events")
    assert len(events.content) < 2000
    (data,) = [line for line in events.text.splitlines() if line.startswith("data:")]
    assert json.loads(data[5:]) | {"spec": spec} == whole


def test_a_list_does_not_read_the_specs(store: JobStore) -> None:
    """Neither a list nor what follows jobs names the column."""
    job, _ = store.create(NewJob("a", {"model": {"name": "m"}}, "/o", "ann", "local"))
    with statements(store.engine) as found:
        assert [one.model for one in store.find().jobs] == ["m"]
        assert store.item(job.id).model == store.items([job.id, "x"])[job.id].model == "m"
    assert [statement for statement in found if "SELECT" in statement]
    assert not [statement for statement in found if re.search(r"\b(spec|reference)\b", statement)]


def test_datasets_are_looked_up_in_one_query(database: Engine) -> None:
    """Thousands in a spec, some of them twice; one that is missing is named."""
    datasets = DatasetStore(database)
    row = NewDataset("", "a.jsonl", "ann", 1, "0" * 64, "jsonl", 1, 0, "")
    ids = [datasets.create(NewDataset(**{**_plain(row), "id": new_id()})).id for _ in range(50)]
    spec = {"input": {"paths": [f"dataset://{one}" for one in ids * 2] + ["/x"]}}
    with writing(database) as connection, statements(database) as found:
        require_datasets(connection, spec)
    assert len([statement for statement in found if "SELECT" in statement]) == 1
    many = {"input": {"paths": [f"dataset://{new_id()}" for _ in range(20_000)] + spec["input"]["paths"]}}
    began = time.monotonic()
    with (
        pytest.raises(UnknownDatasetError, match=r"input\.paths: there is no dataset"),
        reading(database) as connection,
    ):
        require_datasets(connection, many)
    assert time.monotonic() - began < 5


def _plain(row: NewDataset) -> dict[str, Any]:
    return {name: getattr(row, name) for name in NewDataset.__dataclass_fields__}


# --- logs


def test_a_header_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    """Addresses are addresses or `-`; nothing that a request holds makes a line, or a control character."""
    port = free_port()
    command = [*QTUNE, "serve", "--port", str(port), "--data-root", str(tmp_path / "root")]
    server = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    forged = "2026-01-01 00:00:00,000 INFO [x] 6.6.6.6 root DELETE /api/v1/jobs 204 1 ms"
    claims = [
        "10.0.0.9",
        "2001:db8::1",
        "fe80::1%eth0",
        f"evil {forged}",
        "1.2.3.4\t5.6.7.8",
        "\x1b[2J",
        f"::1%\t{forged}",
    ]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_until_ready(client, path="/healthz", process=server)
            for number, claim in enumerate(claims):
                headers = f"Host: 127.0.0.1\r\nConnection: close\r\nX-Forwarded-For: {claim}"
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(f"GET /marked/{number} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                    assert connection.recv(4096)
    finally:
        server.terminate()
        _, told = server.communicate(timeout=30)
    lines = told.decode().splitlines()
    marked = [re.fullmatch(r"\S+ \S+ INFO \[\w+\] (\S+) - GET /marked/(\d) 404 \d+ ms", line) for line in lines]
    seen = {int(found[2]): found[1] for found in marked if found is not None}
    assert {0: "10.0.0.9", 1: "2001:db8::1", 2: "fe80::1", 3: "-"}.items() <= seen.items()
    assert set(seen.values()) <= {"10.0.0.9", "2001:db8::1", "fe80::1", "-", "::1"}
    assert not [line for line in lines if line.startswith("2026-01-01") or not line.isprintable()]
