"""Limits for connections and bodies, over real sockets, with both of uvicorn's HTTP protocols."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from qtune_service.server import http_server
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.routes import json_body
from tests.api.servers import scripted, serving, settings
from tests.jobs import QTUNE, environment
from tests.waiting import free_port, wait_until_ready

IDLE_S = 1.5
JSON_HEAD = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data root of all servers of this module."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module", params=["httptools", "h11"])
def client(folder: Path, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Yield a client of a server with short limits and twenty connections."""
    if request.param == "httptools":
        pytest.importorskip("httptools")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_server, "IDLE_S", IDLE_S)
        patch.setattr(json_body, "BODY_S", IDLE_S)
        chosen = settings(folder, max_running_jobs=8)
        with serving(chosen, scripted(folder), protocol=request.param, max_connections=20) as made:
            yield made


@contextmanager
def opened(client: httpx.Client, sent: bytes = b"") -> Iterator[socket.socket]:
    """Open a connection, and send something."""
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(sent)
        yield connection


def closed_after_s(connection: socket.socket) -> float:
    """Wait until the server closes a connection; return how long that took."""
    began = time.monotonic()
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - began


def is_closed(connection: socket.socket) -> bool:
    """Send a byte; return whether the server has closed the connection."""
    try:
        connection.sendall(b"x")
        return connection.recv(4096) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def takes_bytes(connection: socket.socket, block: bytes, limit: int = 4 << 20) -> int:
    """Send a block again and again; return how many bytes the server takes before it closes the connection."""
    sent = 0
    try:
        while sent < limit:
            connection.sendall(block)
            sent += len(block)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    ],
)
def test_a_head_that_does_not_end_is_given_up(client: httpx.Client, sent: bytes) -> None:
    """A connection without a whole head is closed, also one that sends a byte now and then."""
    with opened(client, sent) as silent, opened(client, sent) as dripping:
        dripping.settimeout(0.2)
        began = time.monotonic()
        while not is_closed(dripping):
            assert time.monotonic() - began < IDLE_S + 10
        assert closed_after_s(silent) < IDLE_S + 10


def test_a_connection_that_asks_again_stays(client: httpx.Client) -> None:
    """Its time begins anew with each answer."""
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with opened(client) as connection:
        for _ in range(8):
            connection.sendall(request)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
            time.sleep(IDLE_S / 3)


def test_a_stream_outlives_the_limit(client: httpx.Client, folder: Path) -> None:
    """Events of a job that says nothing for longer than a connection may be idle."""
    body = {"input": {"paths": [f"{folder}/inputs/a"]}, "model": {"name": "sleep"}}
    job = client.post("/api/v1/jobs", json=body).json()["id"]
    with client.stream("GET", f"/api/v1/jobs/{job}/events") as response:
        lines = response.iter_lines()
        while json.loads(next(line for line in lines if line.startswith("data:"))[5:])["stage"] != "score":
            pass
        time.sleep(3 * IDLE_S)
        assert client.post(f"/api/v1/jobs/{job}/cancel").status_code == 202
        assert json.loads([line for line in lines if line.startswith("data:")][-1][5:])["status"] == "cancelled"


@pytest.mark.parametrize("padding", [b"X-Long: ", b"X-A: b\r\n"], ids=["one header", "many headers"])
def test_a_head_without_end_is_refused(client: httpx.Client, padding: bytes) -> None:
    """Soon after its limit, and not when the memory is full."""
    with opened(client, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n") as connection:
        assert takes_bytes(connection, padding * (8192 // len(padding))) < 4 << 20
        assert closed_after_s(connection) < 5


def test_trailers_without_end_are_refused(client: httpx.Client) -> None:
    """What follows a body in chunks is as limited as a head."""
    head = b"POST /api/v1/session HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    with opened(client, head) as connection:
        assert takes_bytes(connection, b"X-Trailer: x\r\n" * 700) < 4 << 20
        assert closed_after_s(connection) < 5


def test_idle_connections_make_room(client: httpx.Client) -> None:
    """More than the limit: the oldest idle ones are closed, and whoever asks is answered."""
    with ExitStack() as stack:
        idle = [stack.enter_context(opened(client)) for _ in range(40)]
        for _ in range(5):
            assert httpx.get(f"{client.base_url}/healthz").status_code == 200
        assert closed_after_s(idle[0]) < 1


def test_streams_are_not_closed_for_newcomers(client: httpx.Client, folder: Path) -> None:
    """A request in progress keeps its connection, however many idle ones come."""
    body = {"input": {"paths": [f"{folder}/inputs/a"]}, "model": {"name": "sleep"}}
    job = client.post("/api/v1/jobs", json=body).json()["id"]
    with client.stream("GET", f"/api/v1/jobs/{job}/events") as response, ExitStack() as stack:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith("data:"))
        for _ in range(60):
            stack.enter_context(opened(client))
        assert httpx.post(f"{client.base_url}/api/v1/jobs/{job}/cancel").status_code == 202
        assert json.loads([line for line in lines if line.startswith("data:")][-1][5:])["status"] == "cancelled"


@pytest.mark.parametrize("path", [b"/api/v1/jobs", b"/api/v1/session", b"/api/v1/preview"])
def test_a_body_that_does_not_come_is_given_up(client: httpx.Client, path: bytes) -> None:
    """408, and the connection is closed, though its sender sends a byte now and then."""
    with opened(client, JSON_HEAD % (path, 1000)) as connection:
        for _ in range(int(IDLE_S / 0.3) - 1):
            connection.sendall(b" ")
            time.sleep(0.3)
        answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b'"code":"too_slow"' in answer
        assert closed_after_s(connection) < IDLE_S + 10


def test_who_has_no_token_is_refused_before_the_body(tmp_path: Path) -> None:
    """401 while the body has not come, whatever its announced size is within the limits; and a small one to sign in."""
    database = open_database(f"sqlite:///{tmp_path}/qtune.db")
    upgrade(database)
    _, reading = TokenStore(database).create("ann", Scope.read)
    bearer = b"Authorization: Bearer " + reading.encode() + b"\r\nContent-Length:"
    with serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client:
        for path in (b"/api/v1/jobs", b"/api/v1/preview", b"/api/v1/jobs/x/reprune", b"/api/v1/datasets?name=a.jsonl"):
            for header, status in ((b"Content-Length:", b"401"), (bearer, b"403")):
                with opened(client, (JSON_HEAD % (path, 1 << 20)).replace(b"Content-Length:", header)) as connection:
                    connection.settimeout(5)
                    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 " + status), (path, status)
        large = client.post("/api/v1/session", content=b" " * 5000, headers={"Content-Type": "application/json"})
        assert (large.status_code, large.json()["code"]) == (413, "too_large")
        keys = json.dumps({f"k{i}": 1 for i in range(400)})[:4000]
        assert len(client.post("/api/v1/session", content=keys).content) < 2000


def test_a_server_with_few_descriptors_goes_on_answering(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one, and hundreds of idle connections do not use up all of it."""
    port = free_port()

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 160))

    command = [*QTUNE, "serve", "--port", str(port), "--data-root", str(tmp_path)]
    server = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, preexec_fn=few)  # noqa: PLW1509
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client, ExitStack() as stack:
            wait_until_ready(client, path="/readyz", process=server)
            limits = Path(f"/proc/{server.pid}/limits").read_text()
            assert next(line.split()[3:5] for line in limits.splitlines() if "open files" in line) == ["160", "160"]
            for _ in range(400):
                stack.enter_context(opened(client))
            assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 150
            for path in ("/healthz", "/readyz", "/api/v1/jobs"):
                assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
    finally:
        server.terminate()
        _, told = server.communicate(timeout=30)
    assert b"Traceback" not in told
