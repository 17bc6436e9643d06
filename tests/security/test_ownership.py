"""Who owns an output: what is refused at submission, what a deletion removes, and that today's policy decides."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from qtune_service.job_states import JobStatus
from qtune_service.output.layout import Output
from qtune_service.output.reader import FinishedOutput
from qtune_service.output.removal import clear
from qtune_service.server.jobs.ids import new_id
from qtune_service.server.jobs.policy import real_output
from qtune_service.server.launchers.local import LocalLauncher
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.finished_outputs import FinishedOutputs
from tests.s3 import S3Endpoint
from tests.scripted_jobs import job_request, submit_job, wait_for_job

FOREIGN = (
    "pruned/notes.txt",
    "pruned/part-of-my-thesis.txt",
    "pruned/part-00099.parquet",
    "pruned/mine/part-00000.parquet",
    "scores/.hidden",
    "tokenizer/my-tokenizer.json",
    "_qtune/diary.md",
    "_qtune/input/mine.jsonl",
    "data.csv",
    "manifest.json.bak",
)


@dataclass(frozen=True, slots=True)
class Site:
    """A server with scripted drivers."""

    client: httpx.Client
    folder: Path

    def place(self) -> Path:
        """Return an output that no job has."""
        return self.folder / "outputs" / new_id()

    def delete(self, job: str, **query: Any) -> httpx.Response:
        """Delete a job."""
        return self.client.delete(f"/api/v1/jobs/{job}", params=query)

    def stored(self, output: Path | str, finished: FinishedOutput, **changes: Any) -> str:
        """Store a job that has ended, with this output."""
        spec = {**finished.spec.model_dump(mode="json"), **changes}
        return store_job(database_of(self.folder), str(output), JobStatus.succeeded, spec)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a site for all tests of this module. Each test has its own jobs and outputs."""
    folder = tmp_path_factory.mktemp("site")
    with serving(settings(folder, max_running_jobs=4), scripted(folder)) as client:
        yield Site(client, folder)


def files_of(root: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}


def with_foreign(finished: FinishedOutput, root: Path) -> Path:
    """Return a copy of an output in which a user put files, with the leftovers of a crash."""
    shutil.copytree(finished.root, root)
    record = root / "_qtune" / "job.json"
    if record.exists():  # as a version wrote it that did not record the job
        record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "job"}))
    for name in FOREIGN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    for name in ("pruned/.part-00000.parquet.17-0123abcd.tmp", "_qtune/scored/00000.json", "_qtune/plan.json",
                 "_qtune/partial/00001.arrow", "_qtune/ranks/labels-00000.bin", "_qtune/.plan.json.3-0123abcd.tmp",
                 "_qtune/input/0000-00000.jsonl", "_qtune/input/input/0001-00000.jsonl",
                 ".manifest.json.9-0123abcd.tmp"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return root


# --- at submission


def test_two_jobs_have_no_output_in_common(site: Site) -> None:
    """Neither the same one, nor one inside another, however it is written; a deleted job gives it free."""
    place = site.place()
    first = submit_job(site.client, site.folder, output={"path": str(place)})
    wait_for_job(site.client, first["id"], "succeeded")
    (site.folder / "outputs" / f"link-{place.name}").symlink_to(place)
    for other in (str(place), f"{place}/", f"{place}/.", f"{place}//", f"{place}/below", f"{place}/a/b/c",
                  f"{place.parent}/./{place.name}", f"{place.parent}/link-{place.name}",
                  f"{place.parent}/link-{place.name}/x"):  # fmt: skip
        for act in ("succeed", "fail"):
            answer = site.client.post("/api/v1/jobs", json=job_request(site.folder, act, output={"path": other}))
            assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict"), (other, answer.text)
    inner = submit_job(site.client, site.folder, output={"path": f"{place}-more/inner"})
    around = site.client.post("/api/v1/jobs", json=job_request(site.folder, output={"path": f"{place}-more"}))
    assert (around.status_code, around.json()["code"]) == (409, "output_conflict")
    assert inner["id"] in around.json()["detail"]
    assert site.delete(first["id"], keep_output=True).status_code == 204
    assert submit_job(site.client, site.folder, output={"path": str(place)})["output"] == str(place)


def test_an_output_of_no_server_is_not_taken(site: Site, outputs: FinishedOutputs) -> None:
    """An output that a command made, by its own record, is refused before a driver touches it."""
    root = site.place()
    shutil.copytree(outputs.pruned.root, root)
    before = files_of(root)
    answer = site.client.post("/api/v1/jobs", json=job_request(site.folder, output={"path": str(root)}))
    assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict")
    assert files_of(root) == before


def test_a_driver_leaves_a_foreign_output_as_it_is(outputs: FinishedOutputs, tmp_path: Path) -> None:
    """By the real driver: another job's output is refused before even its progress is written, and its job fails."""
    root = tmp_path / "outputs" / "taken"
    shutil.copytree(outputs.pruned.root, root)
    (root / "_qtune" / "progress.json").write_text('{"history": {}}')
    before = {name: (root / name).read_bytes() for name in files_of(root) - {"_qtune/lock"}}
    spec = outputs.scored.spec.model_dump(mode="json")
    chosen = settings(
        tmp_path,
        allow_remote_code=True,
        allowed_inputs=tuple(spec["input"]["paths"]),
        allowed_models=(spec["model"]["name"],),
    )
    with serving(chosen, {"local": LocalLauncher(tmp_path / "jobs")}) as client:
        row = store_job(database_of(tmp_path), str(root), JobStatus.queued, spec)
        ended = wait_for_job(client, row, "failed", "succeeded")
        assert (ended["status"], ended["error"]["code"]) == ("failed", "output_conflict"), ended
    after = {name: (root / name).read_bytes() for name in files_of(root) - {"_qtune/lock"}}
    assert after == before


# --- at deletion


def test_a_deleted_job_takes_its_own_files_along(site: Site, outputs: FinishedOutputs) -> None:
    """And no others: not in its folders, not beside its files, not under names that are nearly its own."""
    root = with_foreign(outputs.pruned, site.place())
    answer = site.delete(site.stored(root, outputs.pruned))
    assert (answer.status_code, answer.headers.get("x-output-kept")) == (204, None)
    assert files_of(root) == set(FOREIGN)


def test_an_output_of_another_job_stays(site: Site, outputs: FinishedOutputs) -> None:
    """By its record, or because another job of this server has it too, or where the record is missing or damaged."""
    root = with_foreign(outputs.pruned, site.place())
    before = files_of(root)
    stranger = site.stored(root, outputs.pruned, prune={"sample_keep_ratio": 0.1})
    kept = site.delete(stranger)
    assert (kept.status_code, "belongs to another job" in unquote(kept.headers["x-output-kept"])) == (204, True)
    owner, second = site.stored(root, outputs.pruned), site.stored(f"{root}/", outputs.pruned)
    inner = site.stored(root / "pruned" / "mine", outputs.pruned)
    for one, names in ((second, owner), (owner, inner)):
        kept = site.delete(one)
        assert (kept.status_code, names in unquote(kept.headers["x-output-kept"])) == (204, True)
    assert site.delete(inner).status_code == 204
    assert files_of(root) == before
    for record in ("{", "[]", '{"spec": {"a": 1}}', None):
        (root / "manifest.json").unlink(missing_ok=True)
        (root / "_qtune" / "job.json").unlink(missing_ok=True)
        if record is not None:
            (root / "_qtune" / "job.json").write_text(record)
        assert unquote(site.delete(site.stored(root, outputs.pruned)).headers["x-output-kept"])
    assert files_of(root) == before - {"manifest.json", "_qtune/job.json"}


def test_the_reproduction_of_the_audit(site: Site, outputs: FinishedOutputs) -> None:
    """Two jobs of one output, as an earlier version let them in: deleting the one that failed leaves A's product."""
    root = with_foreign(outputs.pruned, site.place())
    first = site.stored(root, outputs.pruned)
    failed = site.stored(root, outputs.scored)
    before = files_of(root)
    assert site.delete(failed).headers["x-output-kept"]
    assert files_of(root) == before
    assert site.client.get(f"/api/v1/jobs/{first}/summary").status_code == 200


def test_an_output_in_use_is_not_deleted(site: Site, outputs: FinishedOutputs) -> None:
    """Another process holds its lock: a 409, and nothing has changed."""
    root = with_foreign(outputs.pruned, site.place())
    job, before = site.stored(root, outputs.pruned), files_of(root)
    assert "_qtune/lock" in before, "as every driver leaves it"
    with Output(str(root)).locked():
        answer = site.delete(job)
        assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict")
    assert files_of(root) == before
    assert site.client.get(f"/api/v1/jobs/{job}").status_code == 200
    assert site.delete(job).status_code == 204
    assert files_of(root) == set(FOREIGN)


@pytest.mark.parametrize("path", ["scores", "_qtune", "_qtune/scored", "tokenizer", "."])
def test_deletion_follows_no_link(site: Site, outputs: FinishedOutputs, tmp_path: Path, path: str) -> None:
    """A folder of the output, or the output itself, was replaced by a link to another job's: that one stays whole."""
    root, other = site.place(), tmp_path / "other"
    shutil.copytree(outputs.pruned.root, root)
    shutil.copytree(outputs.pruned.root, other)
    for one in (root, other):
        (one / "_qtune" / "scored").mkdir(exist_ok=True)
        (one / "_qtune" / "scored" / "00000.json").write_text("{}")
    before = files_of(other)
    shutil.rmtree(root / path)
    (root if path == "." else root / path).symlink_to(other / path)
    job = site.stored(root, outputs.pruned)
    assert site.delete(job).status_code in (204, 409)
    assert files_of(other) == before


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_a_false_lock_holds_nobody(site: Site, outputs: FinishedOutputs, kind: str) -> None:
    """A deletion does not wait at a FIFO, nor touch what a link leads to: it is refused, and nothing is removed."""
    root = with_foreign(outputs.pruned, site.place())
    (root / "_qtune" / "lock").unlink()
    if kind == "fifo":
        os.mkfifo(root / "_qtune" / "lock")
    else:
        (root / "_qtune" / "lock").symlink_to(site.folder / "made-by-the-lock")
    job, before = site.stored(root, outputs.pruned), files_of(root)
    assert site.delete(job).status_code in (409, 503)
    assert files_of(root) == before
    assert not (site.folder / "made-by-the-lock").exists()


def test_a_job_without_an_output_is_deleted(site: Site, outputs: FinishedOutputs) -> None:
    """Nothing is made where nothing is."""
    root = site.place()
    assert site.delete(site.stored(root, outputs.pruned)).status_code == 204
    assert not root.exists()


def test_unfinished_outputs_are_cleared(outputs: FinishedOutputs, tmp_path: Path) -> None:
    """Parts of shards that a marker or the plan knows, and those being taken over, also where there is no manifest."""
    for knows in ("markers", "plan", "adopted"):
        root = tmp_path / knows
        shutil.copytree(outputs.scored.root, root)
        shards = sorted(outputs.scored.shards)
        (root / "manifest.json").unlink()
        working = root / "_qtune"
        if knows == "markers":
            (working / "scored").mkdir(exist_ok=True)
            for shard in range(max(shards) + 1):
                (working / "scored" / f"{shard:05}.json").write_text("{}")
        elif knows == "plan":
            (working / "plan.json").write_text(json.dumps({"shards": [{}] * (max(shards) + 1)}))
        else:
            names = [f"{folder}/{path.name}" for folder in ("scores", "rejected") for path in (root / folder).iterdir()]
            (working / "adopted.json").write_text(json.dumps({"files": names}))
        clear(Output(str(root)))
        assert files_of(root) == set(), knows


def test_outputs_on_an_object_store(outputs: FinishedOutputs, s3: S3Endpoint) -> None:
    """The same there: what qtune wrote goes, what it did not write stays."""
    for path in sorted(Path(outputs.pruned.root).rglob("*")):
        if path.is_file():
            s3.put(f"o/{path.relative_to(outputs.pruned.root)}", path.read_bytes())
    for name in FOREIGN:
        s3.put(f"o/{name}", b"mine")
    clear(Output(f"{s3.uri('o')}?endpoint_override={s3.url}"))
    assert {key for key in s3.keys("o") if not key.endswith("/")} == {f"o/{name}" for name in FOREIGN}


def test_an_output_is_of_the_job_that_began_it(site: Site, outputs: FinishedOutputs) -> None:
    """A later job of the same spec at the same place has not begun it: its deletion leaves the output as it is."""
    for began in ("", new_id()):
        root = with_foreign(outputs.pruned, site.place())
        record = root / "_qtune" / "job.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "job": began}))
        kept = site.delete(site.stored(root, outputs.pruned))
        assert "created it" in unquote(kept.headers["x-output-kept"])
        assert (root / "manifest.json").exists()
    made = submit_job(site.client, site.folder, output={"path": str(site.place())})
    wait_for_job(site.client, made["id"], "succeeded")
    assert Output(made["output"]).owning_job() == made["id"]
    assert site.delete(made["id"]).headers.get("x-output-kept") is None
    assert not (Path(made["output"]) / "manifest.json").exists()


def test_names_of_one_place(tmp_path: Path) -> None:
    """A path, the same as a file URI, through a link: one output has one name."""
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    names = {real_output(f"{form}/a") for form in (f"{tmp_path}/out", f"{tmp_path}/link", f"file://{tmp_path}/link")}
    assert names == {f"{tmp_path.resolve()}/out/a"}
    assert real_output("s3://b/a/") == "s3://b/a"


# --- today's policy


def test_what_is_forbidden_meanwhile_does_not_run(tmp_path: Path) -> None:
    """A job that the settings allowed when it was submitted: not at resume, not from the queue, not pruned again."""
    first = settings(tmp_path, allow_remote_code=True, allowed_models=("succeed", "sleep"))
    with serving(first, scripted(tmp_path)) as client:
        done = submit_job(client, tmp_path)["id"]
        wait_for_job(client, done, "succeeded")
        busy = submit_job(client, tmp_path, "sleep")["id"]
        wait_for_job(client, busy, "running")
        code = submit_job(client, tmp_path, model={"name": "succeed", "trust_remote_code": True})["id"]
        waiting = submit_job(client, tmp_path, engine={"name": "my:engine"})["id"]
        client.post(f"/api/v1/jobs/{code}/cancel")
        wait_for_job(client, code, "cancelled")
        client.post(f"/api/v1/jobs/{busy}/cancel")
    with serving(settings(tmp_path, allowed_models=("slow 2",)), scripted(tmp_path)) as client:
        answer = client.post(f"/api/v1/jobs/{code}/resume")
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed"), answer.text
        assert client.get(f"/api/v1/jobs/{code}").json()["status"] == "cancelled"
        ended = wait_for_job(client, waiting, "failed", "succeeded")
        assert (ended["status"], ended["error"]["code"]) == ("failed", "not_allowed")
        assert not (Path(ended["output"]) / "starts").exists(), "no driver was started"
        again = client.post(f"/api/v1/jobs/{done}/reprune", json={})
        assert (again.status_code, again.json()["code"]) == (403, "not_allowed"), again.text
