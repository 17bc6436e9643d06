"""`qtune jobs` and `qtune datasets` against a server under uvicorn: what they print, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qtune_service.cli import app
from qtune_service.client import Client
from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, upgrade
from tests.api.servers import scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs
from tests.jobs import QTUNE, environment
from tests.waiting import free_port


@pytest.fixture(autouse=True)
def _wide(no_config: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are not cut off."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Yield a client of a server without models. The commands have the same server."""
    with serving(settings(tmp_path, max_running_jobs=4), scripted(tmp_path)) as made:
        monkeypatch.setenv("QTUNE_URL", str(made.base_url))
        with Client(str(made.base_url)) as client:
            yield client


def qtune(*arguments: object, text: str | None = None) -> Result:
    """Type a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def submit_by_command(tmp_path: Path, act: str, *more: object) -> str:
    """Submit a job by the command line and return its id, the only text on standard output."""
    done = qtune("jobs", "submit", "--data", f"{tmp_path}/inputs/a.jsonl", "--model", act, *more)
    assert done.exit_code == 0, done.output
    (job,) = done.stdout.split()
    return job


def test_submitting_by_flags(client: Client, tmp_path: Path) -> None:
    """The id on standard output, what to do next beside it; flags and --set are fields of the job."""
    done = qtune(
        *("jobs", "submit", "--data", f"{tmp_path}/inputs/a.jsonl", "--model", "succeed", "--sample-keep-ratio", 0.25),
        *("--set", "prune.strategy=random", "--set", "limits.max_failed_shards=2", "--name", "mine"),
    )
    job = client.get(done.stdout.strip())
    assert (job.name, job.spec["prune"]["sample_keep_ratio"], job.spec["prune"]["strategy"]) == ("mine", 0.25, "random")
    assert job.spec["limits"]["max_failed_shards"] == 2
    assert f"qtune jobs watch {job.id}" in done.stderr


def test_submitting_a_file(client: Client, tmp_path: Path) -> None:
    """As `qtune run` takes it, also without an output; flags come over it, and a key makes one job."""
    file = tmp_path / "job.toml"
    file.write_text(f'[input]\npaths = ["{tmp_path}/inputs/a.jsonl"]\n[model]\nname = "fail"\n[prune]\nseed = 7\n')
    ids = {qtune("jobs", "submit", file, "--model", "succeed", "--key", "k").stdout for _ in range(2)}
    assert len(ids) == 1
    job = client.get(ids.pop().strip())
    assert (job.spec["model"]["name"], job.spec["prune"]["seed"], job.name) == ("succeed", 7, "a.jsonl")


def test_submissions_that_cannot_be(client: Client, tmp_path: Path) -> None:
    """Exit code 2, and what to do; local data are never sent by themselves."""
    data = tmp_path / "here.jsonl"
    data.write_text("{}\n")
    refusals = {
        ("--model", "succeed"): "no data given",
        ("--data", "/x"): "no model given",
        ("--data", "here.jsonl", "--model", "succeed"): "--upload here.jsonl",
        ("--data", str(data), "--model", "succeed"): "input.paths",
        ("--data", "/x", "--model", "m", "--set", "prune.colour=red"): "prune.colour",
        ("--data", "/x", "--model", "m", "--set", "colour"): "FIELD=VALUE",
        ("--data", "/x", "--model", "m", "--set", "model.name.first=a"): "name has no fields",
        (str(tmp_path / "none.toml"),): "none.toml",
    }
    for arguments, words in refusals.items():
        done = qtune("jobs", "submit", *arguments)
        assert (done.exit_code, words in done.stderr) == (2, True), done.output
    assert list(client.list()) == []


@pytest.mark.parametrize(("act", "code", "words"), [("succeed", 0, "kept 50% of 8"), ("fail", 1, "could be scored")])
def test_watching_tells_how_it_ended(client: Client, tmp_path: Path, act: str, code: int, words: str) -> None:
    """By its exit code, in words, and with what to do next."""
    job = submit_by_command(tmp_path, act)
    done = qtune("jobs", "watch", job)
    assert done.exit_code == code, done.output
    assert words in done.stdout
    assert f"qtune jobs {'download' if code == 0 else 'resume'} {job}" in done.stdout
    again = qtune("jobs", "submit", "--data", f"{tmp_path}/inputs/a", "--model", act, "--watch")
    assert (again.exit_code, words in again.stdout) == (code, True)
    lines = qtune("jobs", "watch", job, "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == [client.get(job).status]


def test_cancelled_jobs_have_a_code_of_their_own(client: Client, tmp_path: Path) -> None:
    """5; they go on with resume."""
    job = submit_by_command(tmp_path, "sleep")
    watch_until(client, job, JobStatus.running)
    assert qtune("jobs", "cancel", job).exit_code == 0
    assert qtune("jobs", "watch", job).exit_code == 5
    resumed = qtune("jobs", "resume", job)
    assert (resumed.exit_code, "is queued" in resumed.stderr) == (0, True)
    watch_until(client, job, JobStatus.running)
    qtune("jobs", "cancel", job)
    assert client.wait(job, timeout_s=20).attempts == 2


def watch_until(client: Client, job: str, status: JobStatus) -> None:
    """Follow a job until it has a status."""
    for found in client.watch(job):
        if found.status is status:
            return
    pytest.fail(f"ended before it was {status}")


def read_all(terminal: int) -> None:
    """Read a terminal until its programs have ended, as one does: a program blocks while nobody reads what it draws."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass
    os.close(terminal)


def test_ctrl_c_stops_watching_and_not_the_job(client: Client, tmp_path: Path) -> None:
    """Exit code 130, said; and so in a terminal, where a live line shows the stage and the speed."""
    job = submit_by_command(tmp_path, "sleep")
    watch_until(client, job, JobStatus.running)
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [*QTUNE, "jobs", "watch", job], stdout=inner, stderr=subprocess.PIPE, env=environment({"TERM": "xterm"})
    )
    os.close(inner)
    shown = b""
    while b"score 3/8 \xc2\xb7 12 tok/s \xc2\xb7 ETA 0:00:05" not in shown:
        shown += os.read(outer, 4096)
    process.send_signal(signal.SIGINT)
    threading.Thread(target=read_all, args=(outer,), daemon=True).start()
    _, errors = process.communicate(timeout=90)
    assert (process.returncode, b"the job continues" in errors) == (130, True)
    assert client.get(job).status is JobStatus.running
    client.cancel(job)


def test_lists(client: Client, tmp_path: Path) -> None:
    """Tables for people, lines of JSON for programs; names are shown and not obeyed."""
    assert "no jobs yet" in qtune("jobs", "list").stderr
    first = submit_by_command(tmp_path, "succeed", "--name", "[red]first[/]")
    client.wait(first)
    second = submit_by_command(tmp_path, "fail")
    client.wait(second)
    table = qtune("jobs", "list").stdout
    assert table.index(second) < table.index(first)
    assert "[red]first[/]" in table
    assert "50%" in table
    only = qtune("jobs", "list", "--status", "failed", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in only] == [second]
    assert len(qtune("jobs", "list", "--limit", 1, "--json").stdout.splitlines()) == 1
    assert "no such jobs" in qtune("jobs", "list", "-q", "zzz").stderr


def test_showing_a_job(client: Client, tmp_path: Path) -> None:
    """All of it, why it failed, and what can be done; a job that is not there is exit code 2."""
    job = submit_by_command(tmp_path, "fail")
    client.wait(job)
    shown = qtune("jobs", "show", job)
    assert "none of 8 records could be scored" in shown.stdout
    assert f"qtune jobs resume {job}" in shown.stdout
    assert json.loads(qtune("jobs", "show", job, "--json").stdout)["error"]["code"] == "data"
    missing = qtune("jobs", "show", "01aaaaaaaaaaaaaaaaaaaaaaaa")
    assert (missing.exit_code, "no job" in missing.stderr) == (2, True)


def test_logs(client: Client, tmp_path: Path) -> None:
    """What the driver printed, or its last lines."""
    job = submit_by_command(tmp_path, "vanish")
    client.wait(job)
    client.resume(job)
    client.wait(job)
    assert qtune("jobs", "logs", job).stdout.splitlines() == ["attempt 1", "attempt 2"]
    assert qtune("jobs", "logs", job, "--tail", 1).stdout.splitlines() == ["attempt 2"]


def test_deleting_asks_first(client: Client, tmp_path: Path) -> None:
    """Unless told otherwise, or the output is kept."""
    job = submit_by_command(tmp_path, "succeed")
    client.wait(job)
    assert qtune("jobs", "delete", job, text="n\n").exit_code == 1
    assert client.get(job).id == job
    assert qtune("jobs", "delete", job, "--keep-output").exit_code == 0
    assert list(client.list()) == []
    job = submit_by_command(tmp_path, "succeed")
    client.wait(job)
    assert qtune("jobs", "delete", job, "--yes").exit_code == 0


def test_pruning_again_changes_what_is_named(client: Client, tmp_path: Path) -> None:
    """The rest is as it was."""
    job = submit_by_command(tmp_path, "succeed", "--set", "prune.seed=7")
    client.wait(job)
    done = qtune("jobs", "reprune", job, "--sample-keep-ratio", 0.125, "--name", "eighth")
    again = client.get(done.stdout.strip())
    assert (again.spec["prune"]["seed"], again.spec["prune"]["sample_keep_ratio"]) == (7, 0.125)
    refused = qtune("jobs", "reprune", job, "--set", "model.name=other")
    assert (refused.exit_code, "only fields of prune" in refused.stderr) == (2, True)


def test_downloading(client: Client, tmp_path: Path, outputs: FinishedOutputs) -> None:
    """The product, how a trainer reads it, and it can be exported as a job of this machine can."""
    job = finished_job(tmp_path, outputs.pruned)
    folder = tmp_path / "got"
    done = qtune("jobs", "download", job, folder)
    assert done.exit_code == 0, done.output
    assert f"in {folder}" in done.stdout
    assert f"data_files='{folder}/pruned/*.parquet'" in done.stdout
    assert {path.name for path in folder.iterdir()} >= {"pruned", "tokenizer", "manifest.json", "report.html"}
    assert not (folder / "scores").exists()
    assert qtune("export", folder, "--to", "axolotl", tmp_path / "export").exit_code == 0
    assert qtune("jobs", "download", job, folder, "--all").exit_code == 0
    assert (folder / "scores").exists()
    some = qtune("jobs", "download", job, tmp_path / "some", "--files", "scores/*")
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["scores"]
    assert "load_dataset" not in some.stdout
    unfinished = submit_by_command(tmp_path, "fail")
    client.wait(unfinished)
    refused = qtune("jobs", "download", unfinished, tmp_path / "none")
    assert (refused.exit_code, "has no result" in refused.stderr) == (2, True)


def test_without_a_server() -> None:
    """Exit code 4, where was looked, and what to do."""
    port = free_port()
    done = qtune("jobs", "list", "--url", f"http://127.0.0.1:{port}")
    assert (done.exit_code, f":{port}" in done.stderr, "qtune serve" in done.stderr) == (4, True, True)
    plain = qtune("jobs", "list", "--url", "no url")
    assert (plain.exit_code, "not the URL" in plain.stderr) == (2, True)


def test_login_keeps_what_the_server_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token by standard input or a file, never by an argument; a wrong one is not kept."""
    guarded = settings(tmp_path, host="0.0.0.0")
    database = open_database(guarded.database)
    upgrade(database)
    _, token = TokenStore(database).create("ann", Scope.submit)
    database.dispose()
    config = tmp_path / "config/qtune/config.toml"
    monkeypatch.delenv("QTUNE_URL", raising=False)
    with serving(guarded, scripted(tmp_path)) as made:
        url = str(made.base_url)
        wrong = qtune("jobs", "login", url, text="qtune_x_y\n")
        assert (wrong.exit_code, "not valid" in wrong.stderr, config.exists()) == (2, True, False)
        done = qtune("jobs", "login", url, "--name", "lab", text=f"{token}\n")
        assert (done.exit_code, config.stat().st_mode & 0o777) == (0, 0o600)
        assert token not in done.output
        assert qtune("jobs", "list").exit_code == 0
        assert qtune("jobs", "list", "--profile", "lab").exit_code == 0
        assert qtune("jobs", "list", "--profile", "other").exit_code == 2
        config.chmod(0o644)
        warned = qtune("jobs", "list")
        assert (warned.exit_code, "chmod 600" in warned.stderr) == (0, True)
        config.unlink()
        unknown = qtune("jobs", "list", "--url", url)
        assert (unknown.exit_code, "qtune jobs login" in unknown.stderr) == (2, True)
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        assert qtune("jobs", "list", "--url", url, "--token-file", file).exit_code == 0
        assert qtune("jobs", "list", "--url", url, "--token-file", tmp_path / "none").exit_code == 2


def test_no_command_takes_a_token_as_an_argument() -> None:
    """Others on the machine would see it."""
    for command in ("list", "submit", "login", "download"):
        help_text = qtune("jobs", command, "--help").stdout
        assert "--token-file" in help_text
        assert "--token " not in help_text


def test_commands_that_ask_a_server_load_no_library_of_data() -> None:
    """Nor the client, before one of them is run; tests/unit/cli/test_help.py is about `qtune --help`."""
    heavy = ("httpx", "pyarrow", "numpy", "duckdb")
    code = f"import sys, qtune_service.cli.server_jobs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_datasets(client: Client, tmp_path: Path) -> None:
    """Sent by name only, their URIs on standard output; listed, and removed unless a job needs them."""
    assert "no datasets yet" in qtune("datasets", "list").stderr
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    sent = qtune("datasets", "upload", file)
    (uri,) = sent.stdout.split()
    table = qtune("datasets", "list").stdout
    assert uri in table
    assert "mine.jsonl" in table
    assert json.loads(qtune("datasets", "list", "--json").stdout)["rows"] == 3
    assert qtune("datasets", "delete", uri).exit_code == 0
    assert qtune("datasets", "delete", uri).exit_code == 2
    assert qtune("datasets", "upload", tmp_path / "none.jsonl").exit_code == 3


def test_submitting_data_of_this_machine(client: Client, tmp_path: Path) -> None:
    """What --upload names is sent first, beside what the server has."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    job = client.get(submit_by_command(tmp_path, "succeed", "--upload", file))
    (dataset,) = client.datasets()
    assert job.spec["input"]["paths"] == [f"{tmp_path}/inputs/a.jsonl", dataset.uri]
    assert job.name == "mine.jsonl"
    client.wait(job.id)
