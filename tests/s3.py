"""A real S3 endpoint: moto's server in a process of its own, and a proxy before it that can fail and be slow."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from select import select
from typing import Any, Literal

from tests.waiting import free_port, wait_until

START_S = 60
SLOW_S = 0.15
"""A slow endpoint takes this long over each piece of an answer."""
_REQUEST = re.compile(rb"(?:^|\r\n\r\n)([A-Z]+ /[^ ?]*)[^ ]* HTTP/1\.1\r\n")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where the server listens, and a bucket that exists there."""

    url: str
    bucket: str

    @property
    def env(self) -> dict[str, str]:
        """Variables that point a process to this endpoint."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, key: str) -> str:
        """`s3://` URI of a key of the bucket."""
        return f"s3://{self.bucket}/{key}"

    def client(self) -> Any:
        """boto3's client, to look at the bucket by other means than ours."""
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        self.client().put_object(Bucket=self.bucket, Key=key, Body=body)

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin so."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def json(self, key: str) -> Any:
        """Return the content of a JSON object."""
        return json.load(self.client().get_object(Bucket=self.bucket, Key=key)["Body"])

    def download(self, prefix: str, folder: Any) -> None:
        """Write the objects below a prefix into a folder."""
        client = self.client()
        for key in self.keys(f"{prefix}/"):
            if key.endswith("/"):  # what is left of a folder
                continue
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(self.bucket, key, str(path))


@contextmanager
def s3_server() -> Iterator[str]:
    """Start the server and yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_it_listens(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def s3_bucket(url: str) -> Iterator[S3Endpoint]:
    """Make a bucket on a server and point the AWS environment, which child processes inherit, to the server."""
    endpoint = S3Endpoint(url, f"qtune-{secrets.token_hex(4)}")
    endpoint.client().create_bucket(Bucket=endpoint.bucket)
    before = {name: os.environ.get(name) for name in endpoint.env}
    os.environ.update(endpoint.env)
    try:
        yield endpoint
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def wait_until_it_listens(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server accepts connections. Fail if its process ends before."""

    def listens() -> bool:
        assert server.poll() is None, f"moto's server ended with status {server.poll()}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    wait_until(listens, START_S)


# --- a proxy that can fail


@dataclass(slots=True)
class Faults:
    """How the proxy behaves at the moment."""

    endpoint: S3Endpoint
    """The server behind, as seen through the proxy."""
    mode: Literal["pass", "refuse", "slow"] = "pass"
    """`refuse`: cut what is open, answer 503 to each new request."""
    refused_at_s: list[float] = field(default_factory=list)
    delays: dict[str, float] = field(default_factory=dict)
    """Part of a key -> seconds for which the next write of it is held before it reaches the server."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests that were passed on, by `METHOD /path`, without the query."""


@contextmanager
def faulty(behind: S3Endpoint) -> Iterator[Faults]:
    """Run a proxy before an endpoint, in threads of this process."""
    port = int(behind.url.rpartition(":")[2])
    faults = Faults(behind)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                if faults.mode == "refuse":
                    _refuse(self.request, faults)
                else:
                    _relay(self.request, port, faults)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        faults.endpoint = S3Endpoint(f"http://127.0.0.1:{server.server_address[1]}", behind.bucket)
        yield faults
        server.shutdown()


def _relay(client: socket.socket, port: int, faults: Faults) -> None:
    """Pass bytes both ways until either side ends, or requests are to be refused."""
    with socket.create_connection(("127.0.0.1", port)) as server:
        other = {client: server, server: client}
        while faults.mode != "refuse":
            ready, _, _ = select([client, server], [], [], 0.05)
            for side in ready:
                data = side.recv(1 << 16)
                if not data:
                    return
                if side is server and faults.mode == "slow":
                    time.sleep(SLOW_S)
                if side is client and data.startswith(b"PUT "):
                    time.sleep(_delay(data.split(b"\r\n", 1)[0].decode(), faults))
                if side is client:
                    faults.requests.update(match.decode() for match in _REQUEST.findall(data))
                other[side].sendall(data)


def _delay(request: str, faults: Faults) -> float:
    """Return how long a write is held, and forget the delay."""
    return sum(faults.delays.pop(part) for part in list(faults.delays) if part in request)


def _refuse(client: socket.socket, faults: Faults) -> None:
    """Read one request and answer that the service is too busy, as S3 does."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(1 << 16)
        if not data:
            return
        head += data
    faults.refused_at_s.append(time.monotonic())
    reply = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(SLOW_DOWN)}\r\n"
    client.sendall(reply.encode() + b"Connection: close\r\n\r\n" + SLOW_DOWN)
