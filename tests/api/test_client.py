"""The Python client against a server under uvicorn: jobs, following over restarts, requests that are sent again."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.client import Client
from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import (
    ApiError,
    IllegalMoveError,
    NotAllowedError,
    NotFoundError,
    SpecError,
    UnreachableError,
    WaitTimeoutError,
)
from qtune_service.job_states import JobStatus
from qtune_service.wire import JobView
from tests.api.harm import Answer, stand_in, wire
from tests.api.servers import process
from tests.waiting import free_port, wait_until

pytestmark = pytest.mark.usefixtures("no_config")


def job(folder: Path, act: str = "succeed", **more: Any) -> dict[str, Any]:
    """Return a spec of a job whose driver does `act`."""
    return {"input": {"paths": [f"{folder}/inputs/a.jsonl"]}, "model": {"name": act}, **more}


def port_of(url: str) -> int:
    """Return the port of a URL."""
    port = httpx.URL(url).port
    assert port is not None
    return port


def test_a_job_from_submission_to_its_log(typed_client: Client, tmp_path: Path) -> None:
    """Submitted, waited for, looked at, pruned again, deleted."""
    made = typed_client.submit(job(tmp_path), name="first")
    done = typed_client.wait(made.id, timeout_s=20)
    assert (done.status, done.name, done.counts) == (JobStatus.succeeded, "first", {"read": 8, "kept": 4})
    assert typed_client.get(made.id) == done
    assert list(typed_client.logs(made.id)) == ["attempt 1"]
    again = typed_client.reprune(made.id, {"sample_keep_ratio": 0.25}, name="quarter")
    assert again.spec["from_scores"] == done.output
    assert again.spec["prune"]["sample_keep_ratio"] == 0.25
    typed_client.wait(again.id)
    assert typed_client.delete(made.id, keep_output=True) == "as requested"
    assert Path(done.output, "manifest.json").exists()
    with pytest.raises(NotFoundError, match=made.id):
        typed_client.get(made.id)


def test_a_spec_of_the_package_is_a_job_too(typed_client: Client, tmp_path: Path) -> None:
    """What runs here by `qtune run` is submitted as it is."""
    spec = JobSpec(
        input=InputSpec(paths=(f"{tmp_path}/inputs/*",)),
        model=ModelSpec(name="succeed"),
        output=OutputSpec(path=f"{tmp_path}/outputs/mine"),
    )
    made = typed_client.submit(spec)
    assert made.output == f"{tmp_path}/outputs/mine"
    assert JobSpec.model_validate(made.spec) == spec


def test_wrong_fields_are_found_before_anything_is_sent(typed_client: Client, tmp_path: Path) -> None:
    """Each is named."""
    with pytest.raises(SpecError, match=r"prune\.sample_keep_ratio") as caught:
        typed_client.submit(job(tmp_path, prune={"sample_keep_ratio": 2}, colour="red"))
    assert "colour" in caught.value.message
    assert list(typed_client.list()) == []


def test_errors_are_the_packages_own(typed_client: Client, tmp_path: Path) -> None:
    """By the code of the problem, with message and hint; others are an ApiError that names the fields."""
    with pytest.raises(NotAllowedError, match=r"input\.paths") as refused:
        typed_client.submit({"input": {"paths": ["/etc/passwd"]}, "model": {"name": "succeed"}})
    assert refused.value.hint
    made = typed_client.submit(job(tmp_path, "sleep"))
    with pytest.raises(IllegalMoveError):
        typed_client.resume(made.id)
    typed_client.cancel(made.id)
    with pytest.raises(ApiError) as caught:
        list(typed_client.list(q="x" * 300))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.code, error.status, error.exit_code) == ("invalid_request", 422, 2)
    assert [field for field, _ in error.fields] == ["q"]
    with pytest.raises(NotFoundError):
        typed_client.get("../jobs")


def test_lists_go_over_pages(typed_client: Client, tmp_path: Path) -> None:
    """All of them, the newest first, by status and words."""
    made = [typed_client.submit(job(tmp_path, "sleep"), name=f"job {i}").id for i in range(53)]
    assert [found.id for found in typed_client.list()] == made[::-1]
    assert [found.id for found in typed_client.list(q="job 7")] == [made[7]]
    typed_client.cancel(made[5])
    assert [found.id for found in typed_client.list([JobStatus.cancelled])] == [made[5]]
    for one in made:
        typed_client.cancel(one) if one != made[5] else None


def test_waiting_ends_in_time(typed_client: Client, tmp_path: Path) -> None:
    """A job that goes on is no failure of it."""
    made = typed_client.submit(job(tmp_path, "sleep"))
    before = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=made.id):
        typed_client.wait(made.id, timeout_s=1)
    assert time.monotonic() - before < 5
    typed_client.cancel(made.id)
    assert typed_client.wait(made.id, timeout_s=20).status is JobStatus.cancelled


def test_watching_goes_on_over_a_killed_server(tmp_path: Path) -> None:
    """Nothing is told twice or in a wrong order; the end is seen though the server that began is gone."""
    port, losses = free_port(), threading.Event()
    seen: list[JobView] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        with process(tmp_path, port) as server:
            made = client.submit(job(tmp_path, "sleep"))
            follower = threading.Thread(
                target=lambda: seen.extend(client.watch(made.id, lost=losses.set)), name="follower"
            )
            follower.start()
            wait_until(lambda: client.get(made.id).status is JobStatus.running)
            server.kill()
            assert losses.wait(10)
        with process(tmp_path, port):
            client.cancel(made.id)
            follower.join(30)
            assert not follower.is_alive()
    versions = [one.version for one in seen]
    assert versions == sorted(set(versions))
    assert seen[-1].status is JobStatus.cancelled


def test_a_lost_answer_makes_no_second_job(server_url: str, tmp_path: Path) -> None:
    """The connection is cut when the server answers: the request goes out again under the same key."""
    with wire(port_of(server_url), lambda n, _at, block: None if n == 1 else block) as way:
        with Client(f"http://127.0.0.1:{way.port}") as client:
            made = client.submit(job(tmp_path, "sleep"))
        assert way.num_connections == 2
    with Client(server_url) as client:
        assert [found.id for found in client.list()] == [made.id]
        client.cancel(made.id)


def test_what_is_not_safe_is_not_sent_twice(server_url: str, tmp_path: Path) -> None:
    """A resume whose answer is lost may have been done: the caller is told instead."""
    with Client(server_url) as client:
        made = client.submit(job(tmp_path, "fail"))
        client.wait(made.id)
    with wire(port_of(server_url), lambda _n, _at, _block: None) as way:
        with Client(f"http://127.0.0.1:{way.port}") as client, pytest.raises(UnreachableError):
            client.resume(made.id)
        assert way.num_connections == 1


def test_a_deletion_whose_answer_was_lost_is_done(server_url: str, tmp_path: Path) -> None:
    """The second attempt finds nothing, and that is what was wanted."""
    with Client(server_url) as client:
        made = client.submit(job(tmp_path))
        client.wait(made.id)
    cut_once = wire(port_of(server_url), lambda n, _at, block: None if n == 1 else block)
    with cut_once as way, Client(f"http://127.0.0.1:{way.port}") as client:
        client.delete(made.id)
    with Client(server_url) as client:
        assert list(client.list()) == []


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    """After Retry-After; one that stays busy is an error in the end."""
    page = json.dumps({"jobs": [], "next_cursor": None}).encode()
    busy = iter([Answer(503, {"Retry-After": "1"}), Answer(429, {"Retry-After": "0"}), Answer(200, {}, page)])
    with stand_in(lambda *_: next(busy)) as stand, Client(stand.url) as client:
        before = time.monotonic()
        assert list(client.list()) == []
        assert 1 <= time.monotonic() - before < 5
        assert len(stand.asked) == 3
    with stand_in(lambda *_: Answer(503)) as stand, Client(stand.url, patience_s=0.5) as client:
        with pytest.raises(ApiError, match="503"):
            list(client.list())
        assert len(stand.asked) > 1


def test_where_no_server_is(tmp_path: Path) -> None:
    """Soon, with what to do."""
    before = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(UnreachableError, match="refused") as caught,
    ):
        client.get("x")
    assert "qtune serve" in caught.value.hint
    assert time.monotonic() - before < 5


def test_a_server_of_another_kind() -> None:
    """Its answer is not taken for one of ours, and where it sends to is told."""
    with stand_in(lambda *_: Answer(404, {"Content-Type": "text/html"}, b"<h1>nginx")) as stand:
        with Client(stand.url) as client, pytest.raises(ApiError, match="404") as caught:
            client.get("x")
        assert (caught.value.code, "Q-Tuning" in caught.value.hint) == ("unexpected_answer", True)
    with stand_in(lambda *_: Answer(301, {"Location": "https://there.example/jobs"})) as stand:
        with Client(stand.url) as client, pytest.raises(ApiError) as caught:
            client.get("x")
        assert "https://there.example/jobs" in caught.value.hint


def test_the_client_is_small() -> None:
    """It loads none of the libraries of the server, of data, or of models."""
    heavy = ("torch", "ray", "vllm", "transformers", "fastapi", "starlette", "sqlalchemy", "duckdb", "pyarrow", "numpy")
    code = f"import sys, qtune_service.client; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_followed_log_goes_on_over_cuts(server_url: str, tmp_path: Path) -> None:
    """Each line once, until the job ends, though the connection breaks off in the middle of the log."""
    with Client(server_url) as client:
        made = client.submit(job(tmp_path, "sleep"))
        wait_until(lambda: list(client.logs(made.id)))
        (log,) = (tmp_path / "jobs").glob("*.log")
        lines = [f"line {i}" for i in range(3000)]

        def cut(number: int, at: int, block: bytes) -> bytes | None:
            return None if number < 4 and at > 9_000 else block

        with wire(port_of(server_url), cut) as way, Client(f"http://127.0.0.1:{way.port}") as follower:
            with log.open("a") as file:
                file.writelines(f"{line}\n" for line in lines)
            found = follower.logs(made.id, follow=True)
            assert next(found) == "attempt 1"
            client.cancel(made.id)
            assert list(found) == lines
            assert way.num_connections >= 2  # a cut drops a block, and on a busy machine blocks are large
        assert list(client.logs(made.id, tail=2, follow=True)) == lines[-2:]
