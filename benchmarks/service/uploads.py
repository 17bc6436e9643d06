"""Measure uploads to a server in a process of its own: MB/s, memory, and the latency of other requests.

The file is made while it is sent, so no disk is read. `answers p99` is of /healthz, asked for all the while.
`peak` is the server's largest resident memory (VmHWM) after the upload, `at rest` before it; `CPU s` is the server's.

    python -m benchmarks.service.uploads --bytes 2147483648
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One upload."""

    size_bytes: int
    seconds: float
    cpu_s: float
    rest_bytes: int
    peak_bytes: int
    answers_p99_s: float

    @property
    def mb_per_s(self) -> float:
        """Megabytes a second, from the first byte to the answer."""
        return self.size_bytes / 1e6 / self.seconds


def measure_upload(name: str, block: bytes, size_bytes: int) -> Measured:
    """Send `block` again and again, until there are `size_bytes`, to a server of its own."""
    root = Path(tempfile.mkdtemp(prefix="qtune-uploads-"))
    port = _free_port()
    command = [sys.executable, "-m", "qtune_service.cli", "serve", "--data-root", str(root), "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        _wait_for(port)
        rest = _resident(server.pid, "VmRSS")
        with _asked_meanwhile(port) as waits:
            started, used_s = time.perf_counter(), _cpu_s(server.pid)
            sent = _send(port, name, block, size_bytes)
            seconds = time.perf_counter() - started
        p99 = sorted(waits)[int(len(waits) * 0.99)] if waits else 0.0
        used_s = _cpu_s(server.pid) - used_s
        return Measured(sent, seconds, used_s, rest, _resident(server.pid, "VmHWM"), p99)
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(root)


def _send(port: int, name: str, block: bytes, size_bytes: int) -> int:
    count = -(-size_bytes // len(block))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Length": str(count * len(block))}
    connection.request("POST", f"/api/v1/datasets?name={name}", body=_blocks(block, count), headers=headers)
    response = connection.getresponse()
    told = json.loads(response.read())
    if response.status != 201:
        raise SystemExit(f"the upload was refused: {told}")
    return count * len(block)


def _blocks(block: bytes, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield block


class _asked_meanwhile:  # noqa: N801 - reads as what it is in a `with`
    """Seconds that /healthz took, each time."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/healthz"
        self._waits: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._ended.wait(0.02):
                started = time.perf_counter()
                client.get(self._url)
                self._waits.append(time.perf_counter() - started)

    def __enter__(self) -> list[float]:
        self._thread.start()
        return self._waits

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/readyz").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server does not answer")


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _resident(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def lines(chars: int) -> bytes:
    """Return about a MiB of JSON lines, with answers of so many characters."""
    answer = "It lives in gardens. " * (chars // 21)
    record = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": answer}]}
    line = json.dumps(record).encode() + b"\n"
    return line * (MIB // len(line))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", type=int, default=2 << 30)
    size = parser.parse_args().bytes
    long, short = lines(2000), lines(150)
    rows = [
        ("JSON lines of 2 kB", "long.jsonl", long, size),
        ("JSON lines of 0.2 kB", "short.jsonl", short, size),
        ("gzip of JSON lines of 2 kB, stored", "long.jsonl.gz", gzip.compress(long, compresslevel=0), size),
    ]
    print("| upload | GB | s | MB/s | CPU s | at rest MiB | peak MiB | answers p99 ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for title, name, block, wanted in rows:
        row = measure_upload(name, block, wanted)
        print(
            f"| {title} | {row.size_bytes / 1e9:.2f} | {row.seconds:.1f} | {row.mb_per_s:.0f} | {row.cpu_s:.1f} | "
            f"{row.rest_bytes / MIB:.0f} | {row.peak_bytes / MIB:.0f} | {1e3 * row.answers_p99_s:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
