"""Conditions and Parquet files that mean harm: the server answers, and a child process may die for it."""

from __future__ import annotations

import array
import fcntl
import os
import random
import signal
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtune_service.ingest.parquet import MAX_COLUMNS
from tests.api.servers import process, scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs
from tests.waiting import free_port, wait_until


def joined(separator: str, times: int) -> str:
    """Return a list aggregate that repeats a text."""
    return "list_aggr([" + ",".join(["''"] * times) + f"],'string_agg',{separator})"


def brackets(sign: str) -> str:
    """576,000 brackets."""
    return joined(joined(f"'{sign * 80}'", 60), 120)


DEEP = f"json_contains(list_aggr([{brackets('[')},{brackets(']')}],'string_agg','1'),'7')"
"""Ended the server's process while it evaluated conditions by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server in this process, and the path of a finished job."""

    client: httpx.Client
    job: str

    def ask(self, where: str = "line > 0") -> httpx.Response:
        """Ask for samples."""
        return self.client.get(f"{self.job}/samples", params={"where": where, "limit": 1})


@pytest.fixture
def target(tmp_path: Path, outputs: FinishedOutputs) -> Iterator[Target]:
    """Yield a server with a worker process that has answered once."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        client.timeout = httpx.Timeout(120)
        made = Target(client, f"/api/v1/jobs/{finished_job(tmp_path, outputs.pruned)}")
        assert made.ask().json()["total"] == NUM_SAMPLES
        yield made


def children(of: psutil.Process | None = None) -> list[psutil.Process]:
    """Return the worker processes that answer questions."""
    every = (of or psutil.Process()).children(recursive=True)
    return [
        child
        for child in every
        if "qtune_service.server.questions.worker" in (child.as_dict(["cmdline"])["cmdline"] or ())
    ]


@pytest.mark.parametrize(
    "where",
    [
        DEEP,
        "json_contains(source, '1')",
        "list_aggregate(truth, 'string_agg', 'x') = ''",
        "- " * 200 + "line > 1",
        "NOT " * 110 + "kept",
    ],
)
def test_conditions_that_recurse_are_refused(target: Target, where: str) -> None:
    """422, and no child dies of it."""
    before = [child.pid for child in children()]
    answer = target.ask(where)
    assert (answer.status_code, answer.json()["code"]) == (422, "query"), answer.text
    assert [child.pid for child in children()] == before


@pytest.mark.parametrize(("number", "message"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGXCPU, "processor time")])
def test_a_child_that_dies_is_an_answer(target: Target, number: int, message: str) -> None:
    """422 for the question that it died of; the next one has another child."""
    (child,) = children()
    child.suspend()  # so that the question waits in the pipe
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(target.ask()))
    asking.start()
    wait_until(lambda: Path(f"/proc/{child.pid}/stat").exists() and _waits(child.pid))
    os.kill(child.pid, number)
    child.resume()
    asking.join()
    (answer,) = answers
    assert (answer.status_code, answer.json()["code"]) == (422, "query"), answer.text
    assert message in answer.json()["detail"]
    assert answer.json()["hint"]
    assert target.ask().json()["total"] == NUM_SAMPLES
    assert [other.pid for other in children()] != [child.pid]


def _waits(pid: int) -> bool:
    """Return whether a request is in the pipe of a stopped worker process."""
    count = array.array("i", [0])
    with Path(f"/proc/{pid}/fd/3").open("rb", buffering=0) as pipe:
        fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0] > 0


def test_a_child_that_died_while_it_waited_is_nobodys_error(target: Target) -> None:
    """The next question has another one."""
    (child,) = children()
    child.kill()
    tasks = Path(f"/proc/{child.pid}/task")  # its main thread is a zombie while others still end
    wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE and len(list(tasks.iterdir())) == 1)
    assert target.ask().json()["total"] == NUM_SAMPLES


def test_answers_are_bounded(target: Target) -> None:
    """What DuckDB says quotes values, and is cut."""
    long = "x" * 1500
    answer = target.ask(f"CAST('{long}' AS INTEGER) = 1")
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) < 1000


def test_children_have_limits_and_no_more_rights(target: Target) -> None:
    """By the kernel, not by themselves."""
    (child,) = children()
    limits = {
        line[:26].strip(): line[26:].split() for line in Path(f"/proc/{child.pid}/limits").read_text().splitlines()
    }
    assert int(limits["Max data size"][1]) == 3 << 29
    assert (limits["Max core file size"][1], limits["Max file size"][1]) == ("0", str(1 << 20))
    assert int(limits["Max cpu time"][0]) < 100
    assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()


def test_children_end_with_their_server(tmp_path: Path, outputs: FinishedOutputs) -> None:
    """Also when it is killed."""
    port = free_port()
    with process(tmp_path, port) as server:
        job = finished_job(tmp_path, outputs.pruned)
        url = f"http://127.0.0.1:{port}/api/v1/jobs/{job}/samples"
        assert httpx.get(url, timeout=60).status_code == 200
        (child,) = children(psutil.Process(server.pid))
        server.kill()
        server.wait()
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_server_itself_never_loads_duckdb(tmp_path: Path, outputs: FinishedOutputs) -> None:
    """Its memory has no trace of it after a question."""
    port = free_port()
    with process(tmp_path, port) as server:
        job = finished_job(tmp_path, outputs.pruned)
        url = f"http://127.0.0.1:{port}/api/v1/jobs/{job}/samples"
        assert httpx.get(url, params={"where": "line > 1"}, timeout=60).status_code == 200
        assert "duckdb" not in Path(f"/proc/{server.pid}/maps").read_text()
        (child,) = children(psutil.Process(server.pid))
        assert "duckdb" in Path(f"/proc/{child.pid}/maps").read_text()


def test_a_footer_of_many_columns_costs_the_server_nothing(target: Target, tmp_path: Path) -> None:
    """A clear refusal, for which the server's process spends next to no time."""
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({f"c{i}": pa.array([1], pa.int64()) for i in range(60_000)}), path)
    data = path.read_bytes()
    used = time.process_time()
    answer = target.client.post("/api/v1/datasets", params={"name": "wide.parquet"}, content=data)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_dataset"), answer.text
    assert f"60,000 columns, more than {MAX_COLUMNS:,}" in answer.json()["detail"]
    assert "wide.parquet" in answer.json()["detail"]
    assert time.process_time() - used < 1, "the server's CPU seconds"


def test_broken_footers_are_answered(target: Target, tmp_path: Path) -> None:
    """Random bytes before a right length and a right magic, many times over; then a whole one is taken."""
    rng = random.Random(0)
    table = pa.table({f"c{i}": [1, 2] for i in range(20)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    whole = path.read_bytes()
    size = int.from_bytes(whole[-8:-4], "little")
    for _ in range(15):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 20)):
            broken[rng.randrange(len(whole) - 8 - size, len(whole) - 8)] = rng.randrange(256)
        answer = target.client.post("/api/v1/datasets", params={"name": "a.parquet"}, content=bytes(broken))
        assert answer.status_code in (201, 422), answer.text
    assert target.client.post("/api/v1/datasets", params={"name": "a.parquet"}, content=whole).status_code == 201
