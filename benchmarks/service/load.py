"""Measure requests/s and latencies with clients in processes of their own, with one kept-alive connection each."""

from __future__ import annotations

import http.client
import multiprocessing
import time
from typing import Any

SECONDS = 3.0


def ask(port: int, path: str, seconds: float, answers: Any) -> None:
    """Send requests over one connection, and put the latencies."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        latencies.append(time.perf_counter() - began)
    answers.put(latencies)


def load(port: int, path: str, clients: int) -> dict[str, float]:
    """Return requests/s and latencies of several clients."""
    answers: Any = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=ask, args=(port, path, SECONDS, answers)) for _ in range(clients)]
    for process in processes:
        process.start()
    latencies = sorted(latency for _ in processes for latency in answers.get())
    for process in processes:
        process.join()
    places = {"p50_ms": 0.5, "p99_ms": 0.99}
    shown = {name: 1e3 * latencies[int(share * (len(latencies) - 1))] for name, share in places.items()}
    return {"per_s": len(latencies) / SECONDS, **shown}
