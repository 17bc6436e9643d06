"""The Python client against a server under uvicorn: jobs, following over restarts, requests that are sent again."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.client import Client
from qtune_service.client.profiles import Profile, config_path, find_address, save_profile
from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import (
    ApiError,
    IllegalMoveError,
    NotAllowedError,
    NotFoundError,
    NotSignedInError,
    SettingsError,
    SpecError,
    UnreachableError,
    WaitTimeoutError,
)
from qtune_service.jobs.access import Scope, TokenStore
from qtune_service.jobs.database import open_database, upgrade
from qtune_service.jobs.models import JobStatus
from qtune_service.wire import JobView
from tests.api.harm import Answer, stand_in, wire
from tests.api.servers import free_port, process, scripted, serving, settings


@pytest.fixture(autouse=True)
def _no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own servers and tokens."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("QTUNE_URL", "QTUNE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a server without models."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made:
        yield str(made.base_url)


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    """A client of it."""
    with Client(server) as made:
        yield made


def job(folder: Path, act: str = "succeed", **more: Any) -> dict[str, Any]:
    """A job that does as told."""
    return {"input": {"paths": [f"{folder}/inputs/a.jsonl"]}, "model": {"name": act}, **more}


def port_of(url: str) -> int:
    """Where it listens."""
    port = httpx.URL(url).port
    assert port is not None
    return port


def test_a_job_from_submission_to_its_log(client: Client, tmp_path: Path) -> None:
    """Submitted, waited for, looked at, pruned again, deleted."""
    made = client.submit(job(tmp_path), name="first")
    done = client.wait(made.id, timeout_s=20)
    assert (done.status, done.name, done.counts) == (JobStatus.succeeded, "first", {"read": 8, "kept": 4})
    assert client.get(made.id) == done
    assert list(client.logs(made.id)) == ["attempt 1"]
    again = client.reprune(made.id, {"sample_keep_ratio": 0.25}, name="quarter")
    assert again.spec["from_scores"] == done.output
    assert again.spec["prune"]["sample_keep_ratio"] == 0.25
    client.wait(again.id)
    client.delete(made.id, keep_output=True)
    assert Path(done.output, "manifest.json").exists()
    with pytest.raises(NotFoundError, match=made.id):
        client.get(made.id)


def test_a_spec_of_the_package_is_a_job_too(client: Client, tmp_path: Path) -> None:
    """What runs here by `qtune run` is submitted as it is."""
    spec = JobSpec(
        input=InputSpec(paths=(f"{tmp_path}/inputs/*",)),
        model=ModelSpec(name="succeed"),
        output=OutputSpec(path=f"{tmp_path}/outputs/mine"),
    )
    made = client.submit(spec)
    assert made.output == f"{tmp_path}/outputs/mine"
    assert JobSpec.model_validate(made.spec) == spec


def test_wrong_fields_are_found_before_anything_is_sent(client: Client, tmp_path: Path) -> None:
    """Each is named."""
    with pytest.raises(SpecError, match=r"prune\.sample_keep_ratio") as caught:
        client.submit(job(tmp_path, prune={"sample_keep_ratio": 2}, colour="red"))
    assert "colour" in caught.value.message
    assert list(client.list()) == []


def test_errors_are_the_packages_own(client: Client, tmp_path: Path) -> None:
    """By the code of the problem, with message and hint; others are an ApiError that names the fields."""
    with pytest.raises(NotAllowedError, match=r"input\.paths") as refused:
        client.submit({"input": {"paths": ["/etc/passwd"]}, "model": {"name": "succeed"}})
    assert refused.value.hint
    made = client.submit(job(tmp_path, "sleep"))
    with pytest.raises(IllegalMoveError):
        client.resume(made.id)
    client.cancel(made.id)
    with pytest.raises(ApiError) as caught:
        list(client.list(q="x" * 300))
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.code, error.status, error.exit_code) == ("invalid_request", 422, 2)
    assert [field for field, _ in error.fields] == ["q"]
    with pytest.raises(NotFoundError):
        client.get("../jobs")


def test_lists_go_over_pages(client: Client, tmp_path: Path) -> None:
    """All of them, the newest first, by status and words."""
    made = [client.submit(job(tmp_path, "sleep"), name=f"job {i}").id for i in range(53)]
    assert [found.id for found in client.list()] == made[::-1]
    assert [found.id for found in client.list(q="job 7")] == [made[7]]
    client.cancel(made[5])
    assert [found.id for found in client.list([JobStatus.cancelled])] == [made[5]]
    for one in made:
        client.cancel(one) if one != made[5] else None


def test_waiting_ends_in_time(client: Client, tmp_path: Path) -> None:
    """A job that goes on is no failure of it."""
    made = client.submit(job(tmp_path, "sleep"))
    before = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=made.id):
        client.wait(made.id, timeout_s=1)
    assert time.monotonic() - before < 5
    client.cancel(made.id)
    assert client.wait(made.id, timeout_s=20).status is JobStatus.cancelled


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
            while client.get(made.id).status is not JobStatus.running:
                time.sleep(0.05)
            server.kill()
            assert losses.wait(10)
        with process(tmp_path, port):
            client.cancel(made.id)
            follower.join(30)
            assert not follower.is_alive()
    versions = [one.version for one in seen]
    assert versions == sorted(set(versions))
    assert seen[-1].status is JobStatus.cancelled


def test_a_lost_answer_makes_no_second_job(server: str, tmp_path: Path) -> None:
    """The connection is cut when the server answers: the request goes out again under the same key."""
    with wire(port_of(server), lambda n, _at, block: None if n == 1 else block) as way:
        with Client(f"http://127.0.0.1:{way.port}") as client:
            made = client.submit(job(tmp_path, "sleep"))
        assert way.num_connections == 2
    with Client(server) as client:
        assert [found.id for found in client.list()] == [made.id]
        client.cancel(made.id)


def test_what_is_not_safe_is_not_sent_twice(server: str, tmp_path: Path) -> None:
    """A resume whose answer is lost may have been done: the caller is told instead."""
    with Client(server) as client:
        made = client.submit(job(tmp_path, "fail"))
        client.wait(made.id)
    with wire(port_of(server), lambda _n, _at, _block: None) as way:
        with Client(f"http://127.0.0.1:{way.port}") as client, pytest.raises(UnreachableError):
            client.resume(made.id)
        assert way.num_connections == 1


def test_a_deletion_whose_answer_was_lost_is_done(server: str, tmp_path: Path) -> None:
    """The second attempt finds nothing, and that is what was wanted."""
    with Client(server) as client:
        made = client.submit(job(tmp_path))
        client.wait(made.id)
    cut_once = wire(port_of(server), lambda n, _at, block: None if n == 1 else block)
    with cut_once as way, Client(f"http://127.0.0.1:{way.port}") as client:
        client.delete(made.id)
    with Client(server) as client:
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


def test_tokens(tmp_path: Path) -> None:
    """One is needed, and lets in by its scope; wrong and expired ones do not, and are not shown in the error."""
    guarded = settings(tmp_path, host="0.0.0.0")
    database = open_database(guarded.database)
    upgrade(database)
    store = TokenStore(database)
    _, good = store.create("ann", Scope.read)
    _, old = store.create("bob", Scope.read, datetime.now(UTC) - timedelta(days=1))
    database.dispose()
    with serving(guarded, scripted(tmp_path)) as made:
        url = str(made.base_url)
        with Client(url, good) as client:
            assert list(client.list()) == []
            with pytest.raises(NotAllowedError, match="scope submit"):
                client.submit(job(tmp_path))
            assert good not in repr(client.__dict__["_connection"].address)
        with Client(url) as client, pytest.raises(NotSignedInError) as caught:
            client.get("x")
        assert "QTUNE_TOKEN" in caught.value.hint
        for token in (old, "qtune_x_y"):
            with Client(url, token) as client, pytest.raises(NotSignedInError, match="not valid") as caught:
                client.get("x")
            assert token not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "x", "http://", "http://ann:pw@x", "http://x:99999", "http://x?y"])
def test_what_is_no_servers_url(url: str) -> None:
    """Is refused before anything is sent."""
    with pytest.raises(SettingsError):
        Client(url)


def test_a_token_does_not_go_over_plain_http_to_others() -> None:
    """Unless that is said; this machine is no other, and a name that only looks like it is one."""
    with pytest.raises(SettingsError, match="could be read") as caught:
        find_address("http://gpu-box:8420", "qtune_a_b")
    assert "qtune_a_b" not in str(caught.value)
    with pytest.raises(SettingsError, match="could be read"):
        find_address("http://localhost.example.org", "qtune_a_b")
    assert find_address("http://gpu-box:8420", "qtune_a_b", plain_http=True).token == "qtune_a_b"
    for url in ("http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://gpu-box"):
        assert find_address(url, "qtune_a_b").token == "qtune_a_b"
    for token in ("", "two words", "line\r\nX-Evil: 1", "schlüssel"):
        with pytest.raises(SettingsError, match="the token is none"):
            find_address("http://localhost", token)


LAB, ELSEWHERE = "https://lab.example", "https://elsewhere.example"


@pytest.mark.parametrize(
    ("arguments", "environ", "url", "token"),
    [
        ({}, {}, LAB, "of-lab"),
        ({"url": f"{LAB}/"}, {}, LAB, "of-lab"),
        ({"url": ELSEWHERE}, {}, ELSEWHERE, None),
        ({"url": ELSEWHERE}, {"QTUNE_TOKEN": "t"}, ELSEWHERE, "t"),
        ({"url": ELSEWHERE}, {"QTUNE_TOKEN": "t", "QTUNE_URL": LAB}, ELSEWHERE, None),
        ({}, {"QTUNE_URL": ELSEWHERE}, ELSEWHERE, None),
        ({}, {"QTUNE_URL": ELSEWHERE, "QTUNE_TOKEN": "t"}, ELSEWHERE, "t"),
        ({"profile": "home"}, {"QTUNE_URL": ELSEWHERE, "QTUNE_TOKEN": "t"}, "http://localhost:1", None),
        ({"profile": "lab"}, {"QTUNE_TOKEN": "t"}, LAB, "of-lab"),
        ({"token": "given"}, {"QTUNE_TOKEN": "t"}, LAB, "given"),
    ],
)
def test_a_token_goes_to_the_server_it_was_given_for(
    tmp_path: Path, arguments: dict[str, Any], environ: Mapping[str, str], url: str, token: str | None
) -> None:
    """Arguments, a named profile, the environment, the default profile; no token with another server's URL."""
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    save_profile("home", Profile(url="http://localhost:1"), config_path(home))
    save_profile("lab", Profile(url=LAB, token="of-lab"), config_path(home))
    found = find_address(**arguments, environ={**home, **environ})
    assert (found.url, found.token) == (url, token)


def test_the_config_file_is_its_owners_alone(tmp_path: Path) -> None:
    """0600 when written; a warning, once, where somebody has opened it to others; errors do not show what it holds."""
    path = config_path({"XDG_CONFIG_HOME": str(tmp_path)})
    save_profile("lab", Profile(url=LAB, token='of-"lab"\\', plain_http=True), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)}).token == 'of-"lab"\\'
    path.chmod(0o644)
    with pytest.warns(UserWarning, match="chmod 600"):
        find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    path.write_text('[profiles.lab]\nurl = "https://x"\ntokn = "secret"\n')
    with pytest.raises(SettingsError, match=r"profiles\.lab\.tokn") as caught:
        find_address(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError, match="no name"):
        save_profile("a b", Profile(url=LAB), tmp_path / "new.toml")


def test_the_client_is_small() -> None:
    """It loads none of the libraries of the server, of data, or of models."""
    heavy = ("torch", "ray", "vllm", "transformers", "fastapi", "starlette", "sqlalchemy", "duckdb", "pyarrow", "numpy")
    code = f"import sys, qtune_service.client; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
