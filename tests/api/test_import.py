"""`qtune jobs import`: jobs come back from their outputs, on SQLite and PostgreSQL, from a disk and an object store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from qtune_service.cli import app
from qtune_service.errors import SpecError
from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.ids import id_of_time, is_id, new_id, time_ms_of
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.rebuild import Fate, Rebuilder, Rebuilt
from qtune_service.server.jobs.store import JobStore
from qtune_service.storage import file_io
from tests.api.servers import process, serving, settings
from tests.finished_outputs import FinishedOutputs
from tests.jobs import REPO
from tests.s3 import S3Endpoint
from tests.scripted_jobs import job_request, wait_for_job
from tests.waiting import free_port

SPEC: dict[str, Any] = {"input": {"paths": ["/in/a.jsonl"]}, "model": {"name": "m"}, "output": {"path": "/elsewhere"}}
AN_HOUR_AGO_S = time.time() - 3600


def rebuilder(engine: Engine, outputs: FinishedOutputs, *places: object, **changes: Any) -> Rebuilder:
    """One that allows what the outputs of the tests ask for, in some places."""
    data = outputs.scored.spec.input.paths[0]
    model = outputs.scored.spec.model.name
    roots = (*map(str, places), str(Path(outputs.scored.root).parent))
    policy = Policy(inputs=(data, "/in"), outputs=roots, models=(model, "m"), remote_code=True)
    return Rebuilder(
        engine, **{"policy": policy, "launcher": "local", "owner": "ann", "datasets_root": "/d", **changes}
    )


def unfinished(folder: Path, spec: dict[str, Any] = SPEC, **progress: Any) -> Path:
    """Write the files of a job that did not end."""
    (folder / "_qtune").mkdir(parents=True)
    (folder / "_qtune" / "job.json").write_text(json.dumps({"spec": spec, "fingerprint": "f"}))
    said = {"stage": "prune", "updated_at_s": AN_HOUR_AGO_S, **progress}
    (folder / "_qtune" / "progress.json").write_text(json.dumps(said))
    return folder


def by_output(found: Iterator[Rebuilt]) -> dict[str, Rebuilt]:
    """Return the result for each output, by the last part of its path."""
    return {one.output.rpartition("/")[2]: one for one in found}


def copy_of(outputs: FinishedOutputs, folder: Path) -> Path:
    """Copy the pruned output to another name."""
    return Path(shutil.copytree(outputs.pruned.root, folder))


def test_finished_outputs_come_back(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """With counts, thresholds and times of their manifests; the folder's name is the id where it is one."""
    kept_id = new_id()
    copy_of(outputs, tmp_path / "team" / kept_id)
    copy_of(outputs, tmp_path / "monday")
    found = by_output(rebuilder(database, outputs, tmp_path).run(str(tmp_path)))
    assert {one.fate for one in found.values()} == {Fate.imported}
    store = JobStore(database)
    job, manifest = store.get(kept_id), outputs.pruned.manifest
    assert (job.status, job.stage, job.owner, job.name) == (JobStatus.succeeded, "done", "ann", "data.jsonl")
    assert (job.counts, job.thresholds) == (manifest["counts"], manifest["thresholds"])
    assert job.progress.samples_done == manifest["counts"]["read"] > 0
    assert job.spec["output"]["path"] == job.output == str(tmp_path / "team" / kept_id)
    named = store.get(found["monday"].job_id)
    assert (named.name, is_id(named.id)) == ("monday", True)
    assert named.finished_at is not None
    assert named.finished_at.isoformat() == manifest["created_at"]
    assert named.created_at == named.finished_at, "when it began is not known"


def test_a_second_import_changes_nothing(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """Also of two at once; and an output whose job has another id is known by its place."""
    for name in ("a", "b", new_id()):
        copy_of(outputs, tmp_path / name)
    mine = rebuilder(database, outputs, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        both = [one for found in pool.map(lambda _: list(mine.run(str(tmp_path))), range(2)) for one in found]
    assert sorted(one.fate for one in both) == [Fate.imported] * 3 + [Fate.known] * 3
    before = JobStore(database).find().jobs
    assert len(before) == 3
    assert {one.fate for one in mine.run(f"{tmp_path}/")} == {Fate.known}
    assert JobStore(database).find().jobs == before


def test_an_unfinished_job_can_be_resumed(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """It comes back as failed, with its own error where it left one, and with the place where it lies now."""
    counted: dict[str, Any] = {"done": 7, "total": 9, "tokens_done": 70, "tokens_per_s": 1.5, "eta_s": 1.0}
    unfinished(tmp_path / "cut", stage="score", **counted)
    unfinished(tmp_path / "bad", error={"code": "data", "message": "no", "hint": "mend it"})
    found = by_output(rebuilder(database, outputs, tmp_path).run(str(tmp_path)))
    store = JobStore(database)
    cut, bad = (store.get(found[name].job_id) for name in ("cut", "bad"))
    assert (cut.status, cut.progress.samples_done, cut.progress.samples_total) == (JobStatus.failed, 7, 9)
    assert cut.error is not None
    assert bad.error is not None
    assert (cut.error.code, bad.error.code, bad.error.hint) == ("unfinished", "data", "mend it")
    assert store.move(cut.id, JobStatus.queued).spec["output"]["path"] == str(tmp_path / "cut")


def test_what_cannot_be_used_is_told_and_harms_nothing(
    database: Engine, outputs: FinishedOutputs, tmp_path: Path
) -> None:
    """Damaged files, foreign ones, a driver that may be at work, what the owner does not allow: each with a reason."""
    copy_of(outputs, tmp_path / "good")
    unfinished(tmp_path / "at-work", updated_at_s=time.time())
    unfinished(tmp_path / "forbidden", {**SPEC, "input": {"paths": ["/etc/passwd"]}})
    unfinished(tmp_path / "of-the-future", {**SPEC, "colour": "red"})
    unfinished(tmp_path / "strange", error=["no"])
    (unfinished(tmp_path / "damaged") / "manifest.json").write_text('{"spec": {"inp')
    (unfinished(tmp_path / "a-list") / "manifest.json").write_text("[]")
    figures = {"spec": SPEC, "counts": {"read": "many"}}
    (unfinished(tmp_path / "false-figures") / "manifest.json").write_text(json.dumps(figures))
    (tmp_path / "never-began" / "_qtune").mkdir(parents=True)
    (tmp_path / "no-output").mkdir()
    found = by_output(rebuilder(database, outputs, tmp_path).run(str(tmp_path)))
    reasons = {
        "at-work": "may still run", "forbidden": "not allowed here", "of-the-future": "colour",
        "strange": "are damaged: error", "damaged": "not valid JSON", "a-list": "", "false-figures": "counts",
        "never-began": "nothing is lost",
    }  # fmt: skip
    assert found.pop("good").fate is Fate.imported
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert found[name].fate is Fate.refused
        assert reason in found[name].why
    assert [job.name for job in JobStore(database).find().jobs] == ["good"]


def test_code_that_an_output_names_is_not_taken_in(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """Who can write to the outputs gets no engine of their own run by a resumed job."""
    unfinished(tmp_path / "evil", {**SPEC, "engine": {"name": "evil:engine"}})
    policy = Policy(inputs=("/in",), outputs=(str(tmp_path),), models=("m",))
    (found,) = rebuilder(database, outputs, policy=policy).run(str(tmp_path))
    assert found.fate is Fate.refused
    assert "does not allow code" in found.why


def test_uploaded_data_are_named_as_before(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """A finished job reads dataset://ID again, so that it can be pruned again; an unfinished one the file itself."""
    dataset = new_id()
    spec = {**SPEC, "input": {"paths": [f"/in/d/{dataset}", "/in/a.jsonl"]}}
    unfinished(tmp_path / "cut", spec)
    (unfinished(tmp_path / "done", spec) / "manifest.json").write_text(json.dumps({"spec": spec}))
    found = by_output(rebuilder(database, outputs, tmp_path, datasets_root="/in/d").run(str(tmp_path)))
    paths = {name: JobStore(database).get(one.job_id).spec["input"]["paths"] for name, one in found.items()}
    assert paths == {"done": [f"dataset://{dataset}", "/in/a.jsonl"], "cut": [f"/in/d/{dataset}", "/in/a.jsonl"]}


def test_an_id_that_another_job_has_is_not_taken_twice(
    database: Engine, outputs: FinishedOutputs, tmp_path: Path
) -> None:
    """Two folders of one name: both come back, one with a new id."""
    name = new_id()
    for team in ("north", "south"):
        copy_of(outputs, tmp_path / team / name)
    found = list(rebuilder(database, outputs, tmp_path).run(str(tmp_path)))
    assert {one.fate for one in found} == {Fate.imported}
    assert len({one.job_id for one in found}) == 2
    assert name in {one.job_id for one in found}


def test_no_such_place(database: Engine, outputs: FinishedOutputs, tmp_path: Path) -> None:
    """A typing mistake is not an empty folder."""
    with pytest.raises(SpecError, match="there is no folder"):
        list(rebuilder(database, outputs).run(str(tmp_path / "outptus")))


def test_outputs_on_an_object_store(database: Engine, outputs: FinishedOutputs, s3: S3Endpoint) -> None:
    """Found below a prefix, and imported as from a disk."""
    name = new_id()
    root = f"out-{name}"
    for uri in file_io.list_files(outputs.pruned.root):
        s3.put(f"{root}/{name}/{file_io.relative(uri, outputs.pruned.root)}", file_io.read_bytes(uri))
    s3.put(f"{root}/notes/readme.txt", b"no output")
    mine = rebuilder(database, outputs, s3.uri(root))
    (found,) = mine.run(s3.uri(root))
    assert (found.fate, found.job_id, found.output) == (Fate.imported, name, s3.uri(f"{root}/{name}"))
    assert [one.fate for one in mine.run(s3.uri(f"{root}/"))] == [Fate.known]


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> Result:
    """Type it on the server's machine."""
    monkeypatch.setenv("QTUNE_ALLOWED_INPUTS", str(folder / "inputs"))
    monkeypatch.setenv("QTUNE_ALLOWED_MODELS", "succeed")
    words = ["jobs", "import", *map(str, arguments), "--data-root", str(folder)]
    return CliRunner().invoke(app, words)


def test_a_server_whose_database_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that it ran are there again after the command, under the ids that they had, and can be looked at."""
    with process(tmp_path, port := free_port()):
        import httpx

        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            made = client.post("/api/v1/jobs", json=job_request(tmp_path, "succeed")).json()
            done = wait_for_job(client, made["id"], "succeeded")
    for path in tmp_path.glob("qtune.db*"):
        path.unlink()
    first = command(monkeypatch, tmp_path)
    assert (first.exit_code, first.stderr) == (0, "1 imported, 0 not usable\n"), first.output
    again = command(monkeypatch, tmp_path, "--json")
    assert json.loads(again.stdout)["fate"] == "known"
    with serving(settings(tmp_path)) as client:
        (job,) = client.get("/api/v1/jobs").json()["jobs"]
        assert (job["status"], job["counts"], job["output"]) == ("succeeded", done["counts"], done["output"])
        assert job["id"] == made["id"]
        assert client.get("/api/v1/jobs?q=" + job["id"][:10]).json()["jobs"] == [job]


def test_what_was_not_usable_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3, after all others were taken in; the reason stands in the line of its output."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "outputs" / "never-began" / "_qtune").mkdir(parents=True)
    done = command(monkeypatch, tmp_path)
    assert done.exit_code == 3
    assert "never-began" in done.stdout
    assert "nothing is lost" in done.stdout


def test_the_command_needs_no_heavy_library() -> None:
    """It runs in the API's image."""
    code = (
        "import sys; import qtune_service.cli.serve, qtune_service.server.jobs.rebuild;"
        "import qtune_service.server.dependencies;"
        "print({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_ids_by_time_and_place() -> None:
    """The same for the same; they sort by time, and tell it."""
    first, second = id_of_time(1_700_000_000_000, "a"), id_of_time(1_700_000_000_001, "a")
    assert first == id_of_time(1_700_000_000_000, "a") != id_of_time(1_700_000_000_000, "b")
    assert first < second
    assert (is_id(first), time_ms_of(first), time_ms_of(second)) == (True, 1_700_000_000_000, 1_700_000_000_001)
    assert abs(time_ms_of(new_id()) - time.time() * 1000) < 10_000
