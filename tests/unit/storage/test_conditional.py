"""Of two writers on one condition, one succeeds: on a local disk, on S3, and on an emulated Google store."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from qtune_service.errors import OutputConflictError
from qtune_service.storage import conditional, file_io, lease
from qtune_service.storage.conditional import ABSENT, NoConditionError, create, write_if
from qtune_service.storage.filesystems import TransientError
from qtune_service.storage.lease import leased
from tests.s3 import Faults, S3Endpoint, faulty


class GoogleStore:
    """The three requests of Google's JSON API that conditional writes send. It stands in for the store alone."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        store, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    generation, _ = store.objects.get(query["name"][0], (0, b""))
                    if generation != int(query["ifGenerationMatch"][0]):
                        self.reply(412, b"{}")
                        return
                    store.objects[query["name"][0]] = (generation + 1, body)
                self.reply(200, json.dumps({"generation": str(generation + 1)}).encode())

            def do_GET(self) -> None:
                found = store.objects.get(unquote(urlsplit(self.path).path.rpartition("/o/")[2]))
                self.reply(404, b"") if found is None else self.reply(200, found[1], found[0])

            def reply(self, status: int, body: bytes, generation: int = 0) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if generation:
                    self.send_header("x-goog-generation", str(generation))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleStore]:
    """Run the store, and point the environment to it."""
    store = GoogleStore()
    monkeypatch.setenv(conditional.GOOGLE_EMULATOR, f"http://127.0.0.1:{store.server.server_address[1]}")
    yield store
    store.server.shutdown()
    store.server.server_close()


@pytest.fixture(params=["local", "s3", "google"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a new file's URI on each kind of storage that has conditions."""
    if request.param == "local":
        return str(tmp_path / "a folder" / "x.json")
    if request.param == "s3":
        endpoint: S3Endpoint = request.getfixturevalue("s3")
        return endpoint.uri(f"conditional/{tmp_path.name}/x y.json")
    request.getfixturevalue("google")
    return "gs://bucket/folder/x.json"


def test_a_file_is_created_once(uri: str) -> None:
    """Of twenty writers at the same time one is told that it wrote, and the content is that writer's."""
    bodies = [f"writer {i}".encode() for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        won = [
            body for body, wrote in zip(bodies, pool.map(lambda body: create(uri, body), bodies), strict=True) if wrote
        ]
    assert len(won) == 1
    if uri.startswith("gs://"):
        found = conditional.read(uri)
        assert found is not None
        assert found.body == won[0]
    else:
        assert file_io.read_bytes(uri) == won[0]


def test_a_version_is_replaced_once(uri: str) -> None:
    """A writer with an old version is refused, where the storage has versions."""
    first = write_if(uri, b"1", ABSENT)
    assert first is not None
    if not uri.startswith(("s3://", "gs://")):
        with pytest.raises(NoConditionError):
            write_if(uri, b"2", first)
        return
    second = write_if(uri, b"2", first)
    assert second not in (None, first)
    assert write_if(uri, b"3", first) is None
    found = conditional.read(uri)
    assert found is not None
    assert (found.body, found.version) == (b"2", second)


def test_a_file_that_is_gone_is_not_replaced(s3: S3Endpoint) -> None:
    """The version of a removed file is no longer there."""
    uri = s3.uri("conditional/removed.json")
    version = write_if(uri, b"1", ABSENT)
    assert version is not None
    file_io.remove_file(uri)
    assert write_if(uri, b"2", version) is None
    assert conditional.read(uri) is None


def test_a_lost_response_is_no_conflict(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that was done and whose response was lost is found to be this writer's own when it is repeated."""
    uri, send = s3.uri("conditional/lost.json"), conditional._send
    lost: list[int] = []

    def losing(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> conditional.Respond:
        respond = send(method, url, headers, body)

        def reply() -> object:
            response = respond()
            if method == "PUT" and not lost:
                lost.append(response.status_code)
                raise TransientError("the connection was reset")
            return response

        return reply  # type: ignore[return-value]

    monkeypatch.setattr(conditional, "_send", losing)
    version = write_if(uri, b"mine", ABSENT)
    assert lost == [200]
    assert version is not None
    assert version.strip('"') == (file_io.stat(uri) or pytest.fail("it is gone")).version


def test_storage_without_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: S3Endpoint) -> None:
    """It is written as before: other storage, S3 without credentials, and disks without links."""
    with pytest.raises(NoConditionError):
        write_if(f"memory://{tmp_path}/x", b"1", ABSENT)
    assert create(f"memory://{tmp_path}/x", b"1")
    assert create(f"memory://{tmp_path}/x", b"2")
    assert file_io.read_bytes(f"memory://{tmp_path}/x") == b"2"
    with pytest.raises(NoConditionError):
        write_if(s3.uri("x") + "?anonymous=true", b"1", ABSENT)

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert create(str(tmp_path / "x"), b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make heartbeats of a tenth of a second."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "DEAD_S", 1.5)


@pytest.fixture
def proxy(s3: S3Endpoint) -> Iterator[Faults]:
    """Run a proxy before the endpoint, which can hold a write back."""
    with faulty(s3) as faults:
        yield faults


def through(endpoint: S3Endpoint, key: str) -> str:
    """Return a URI that names its endpoint."""
    return f"{endpoint.uri(key)}?endpoint_override={endpoint.url}"


@pytest.mark.usefixtures("quick")
def test_a_slow_first_write_lets_no_second_driver_run(s3: S3Endpoint, proxy: Faults) -> None:
    """A driver whose first write arrives after another one has the lease is refused, and the other one continues."""
    key = "slow-first/lock"
    proxy.delays[key] = 2.0
    entered, refused, both = threading.Event(), [], []

    def late() -> None:
        try:
            with leased(through(proxy.endpoint, key), "out", on_lost=lambda: None):
                both.append("late")
        except OutputConflictError as error:
            refused.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    while proxy.delays:
        threading.Event().wait(0.01)
    with leased(through(s3, key), "out", on_lost=lambda: both.append("lost")):
        entered.set()
        thread.join(30)
        threading.Event().wait(0.5)
        assert both == []
        assert len(refused) == 1
        assert re.search("another qtune process", str(refused[0]))
    assert conditional.read(s3.uri(key)) is None


@pytest.mark.usefixtures("quick")
def test_one_of_two_watchers_takes_over(s3: S3Endpoint) -> None:
    """The lease of a driver that is gone is taken over by one of the drivers that watch it."""
    uri = s3.uri("two-watchers/lock")
    file_io.write_bytes(uri, json.dumps({"owner": "elsewhere:17:abcd", "beat": 5}).encode())
    barrier, inside, refused = threading.Barrier(3), [], []

    def watch(name: str) -> None:
        barrier.wait()
        try:
            with leased(uri, "out", on_lost=lambda: None):
                inside.append(name)
                threading.Event().wait(1.5)
        except OutputConflictError:
            refused.append(name)

    threads = [threading.Thread(target=watch, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(inside), len(refused)) == (1, 2)


@pytest.mark.usefixtures("quick")
def test_a_store_that_ignores_conditions(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noticed, and the lease is held by the older way."""
    uri, send = s3.uri("ignoring/lock"), conditional._send
    monkeypatch.setattr(conditional, "_send", lambda method, url, _headers, body=None: send(method, url, {}, body))
    with leased(uri, "out"):
        first = file_io.read_json(uri)
        threading.Event().wait(0.5)
        assert file_io.read_json(uri)["beat"] > first["beat"]
    assert file_io.stat(uri) is None
