"""What somebody wrote to an output cannot lead the server, or a driver, to other files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import OutputConflictError
from qtune_service.ingest.plan import Plan
from qtune_service.output.layout import Output
from qtune_service.pipeline.prepare import adopt_scores
from qtune_service.pipeline.stages import read_plan
from qtune_service.server.launchers.local import LocalLauncher
from tests.api.servers import serving, settings
from tests.finished_outputs import FinishedOutputs
from tests.scripted_jobs import submit_job, wait_for_job
from tests.security.sites import SECRET, Site, copied, made_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a site for all tests of this module. Each test has its own jobs and outputs."""
    with made_site(tmp_path_factory.mktemp("site")) as made:
        yield made


def change_manifest(root: Path, **changes: Any) -> None:
    """Change the manifest as a user may who can write to the output."""
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- manifests, plans and markers


@pytest.mark.parametrize(
    "path",
    ["scores/../../../x", "/tmp/x", "scores/part-00000.parquet/../../../x", "../pruned/scores/part-00000.parquet",
     "scores/link.parquet", "scores/%2e%2e/x", "_qtune/job.json", "manifest.json"],
)  # fmt: skip
def test_scores_are_taken_from_inside_only(outputs: FinishedOutputs, tmp_path: Path, path: str) -> None:
    """A manifest that names another place is refused before anything is read or written."""
    root = copied(outputs.scored, tmp_path / "a" / "b" / "origin")
    files = [{**file, "path": path} for file in outputs.scored.manifest["files"]]
    change_manifest(root, files=files)
    spec = outputs.scored.spec
    spec = spec.model_copy(update={"from_scores": str(root), "output": spec.output.model_copy(update={"path": "x"})})
    target = tmp_path / "c" / "d" / "target"
    with pytest.raises(OutputConflictError):
        adopt_scores(spec, Output(str(target)))
    assert not target.exists() or not any(file.is_file() for file in target.rglob("*"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("planted", ["a file in the origin", "a folder in the origin", "a folder in the target"])
def test_scores_are_not_taken_through_links(outputs: FinishedOutputs, tmp_path: Path, planted: str) -> None:
    """Neither is a file behind a link read, nor one written there."""
    root, target = copied(outputs.scored, tmp_path / "origin"), tmp_path / "target"
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_text(SECRET)
    part = min((root / "scores").iterdir())
    if planted == "a file in the origin":
        part.unlink()
        part.symlink_to(tmp_path / "secret")
    elif planted == "a folder in the origin":
        (root / "scores").rename(tmp_path / "elsewhere")
        (root / "scores").symlink_to(tmp_path / "elsewhere")
    else:
        target.mkdir()
        (target / "scores").symlink_to(tmp_path / "outside")
    spec = outputs.scored.spec.model_copy(update={"from_scores": str(root)})
    with pytest.raises(OutputConflictError, match="not inside it"):
        adopt_scores(spec, Output(str(target)))
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (target / "scores" / part.name).exists()


def test_a_real_job_writes_nowhere_else(outputs: FinishedOutputs, tmp_path: Path) -> None:
    """By REST and the real driver: the job fails and says why, and the file that the manifest named is not there."""
    root = copied(outputs.scored, tmp_path / "outputs" / "origin")
    change_manifest(root, files=[{**outputs.scored.manifest["files"][0], "path": "scores/../../../planted"}])
    (tmp_path / "outputs" / "origin" / "planted").write_text("x")
    spec = outputs.scored.spec.model_dump(mode="json")
    wanted = {"input": spec["input"], "model": spec["model"], "engine": spec["engine"], "from_scores": str(root)}
    allowed = {"allowed_inputs": tuple(spec["input"]["paths"]), "allowed_models": (spec["model"]["name"],)}
    chosen = settings(tmp_path, allow_remote_code=True, **allowed)
    with serving(chosen, {"local": LocalLauncher(tmp_path / "jobs")}) as client:
        job = client.post("/api/v1/jobs", json=wanted).raise_for_status().json()
        ended = wait_for_job(client, job["id"], "failed", "succeeded")
        assert (ended["status"], ended["error"]["code"]) == ("failed", "output_conflict"), ended
        assert "manifest" in ended["error"]["message"]
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "outputs" / "planted").exists()


@pytest.mark.parametrize("uri", ["/etc/passwd", "{out}/_qtune/input/../../secret", "{out}/_qtune/input/x.jsonl", ""])
def test_a_plan_reads_the_input_only(outputs: FinishedOutputs, tmp_path: Path, uri: str) -> None:
    """A plan in the output that names another file is refused; one that the job made is not."""
    shard = {"index": 0, "file_index": 0, "uri": "/data/a.jsonl", "kind": "jsonl", "format": "messages", "start": 0}
    shard |= {"stop": 9, "first_line": 1, "digest": "", "num_records": 1, "take": None, "limit": None}
    file = {"uri": "/data/a.jsonl", "kind": "jsonl", "compression": None, "size_bytes": 9, "version": "1"}
    plan = {"files": [file], "shards": [shard], "schema_ipc": "", "num_records": 1, "category_field": None}
    plan |= {"prompt_column": None, "completion_column": None}
    at = tmp_path / "_qtune" / "plan.json"
    at.parent.mkdir()
    staged = f"{tmp_path}/_qtune/input"
    for good in ("/data/a.jsonl", f"{staged}/0000-00000.jsonl", f"{staged}/input/0000-00000.jsonl"):
        at.write_text(json.dumps({**plan, "shards": [{**shard, "uri": good}]}))
        assert read_plan(Output(str(tmp_path))).shards[0].uri == good
    remote = "s3://b/o/_qtune/input/0000-00000.jsonl?endpoint_override=http://127.0.0.1:1"
    Plan.from_json(json.dumps({**plan, "shards": [{**shard, "uri": remote}]})).verify_sources(
        Output("s3://b/o?endpoint_override=http://127.0.0.1:1").at("_qtune", "input")
    )
    at.write_text(json.dumps({**plan, "shards": [{**shard, "uri": uri.replace("{out}", str(tmp_path))}]}))
    with pytest.raises(OutputConflictError, match="not an input of the job"):
        read_plan(Output(str(tmp_path)))


# --- files of outputs that the server reads

ROUTES = {
    "report.html": "report",
    "summary_statistics.json": "summary",
    "plane.json": "plane",
    "manifest.json": "summary",
    "_qtune/progress.json": "history",
    "scores/part-00000-*.parquet": "samples",
    "quadrants/part-00000-*.parquet": "samples",
    "rejected/part-*.parquet": "rejected",
    "tokenizer/tokenizer.json": "samples",
    "pruned/part-00000-*.parquet": "files/{path}",
}


@pytest.mark.parametrize(
    "kind", ["a link to a file", "a link to a device", "a fifo", "a folder", "a folder behind a link"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_no_link_leads_out_of_an_output(
    site: Site, outputs: FinishedOutputs, tmp_path: Path, path: str, kind: str
) -> None:
    """A file of an output is a regular one inside it, or a 409; nothing else is read, and nothing waits."""
    job, root = site.finished_job(outputs.pruned)
    at = next(root.glob(path), root / path)
    at.parent.mkdir(exist_ok=True)
    if not at.exists():
        at.write_text("{}")
    before = at.read_bytes()
    if kind == "a folder behind a link":
        moved = tmp_path / "moved"
        at.parent.rename(moved)
        at.parent.symlink_to(moved)
    else:
        at.unlink()
        outside = tmp_path / "outside"
        outside.write_bytes(before)
        if kind == "a folder":
            at.mkdir()
        elif kind == "a fifo":
            os.mkfifo(at)
        else:
            at.symlink_to("/dev/zero" if "device" in kind else outside)
    route = ROUTES[path].format(path=at.relative_to(root))
    answer = site.client.get(f"/api/v1/jobs/{job}/{route}", timeout=20)
    assert answer.status_code == 409, answer.text[:300]
    for route in ("files", "archive", "summary", "history", "logs"):
        assert site.client.get(f"/api/v1/jobs/{job}/{route}").status_code < 500


def test_a_large_file_is_not_read(site: Site, outputs: FinishedOutputs) -> None:
    """A report, a summary or a manifest without end costs the server no memory: it is refused by its size."""
    job, root = site.finished_job(outputs.pruned)
    for path, route in (
        ("report.html", "report"), ("summary_statistics.json", "summary"), ("_qtune/progress.json", "history"),
        ("manifest.json", "summary"),
    ):  # fmt: skip
        with (root / path).open("ab") as file:
            file.truncate(1 << 34)
        answer = site.client.get(f"/api/v1/jobs/{job}/{route}")
        assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict"), answer.text


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": {"read": "many"}},
        {"counts": [1]},
        {"thresholds": {"alpha": [[]]}},
        {"scoring": {"tokens": "x"}},
        {"counts": {"read": -(10**400)}},
    ],
)
def test_a_false_manifest_spoils_no_list(site: Site, changes: dict[str, Any]) -> None:
    """A job whose driver leaves figures that are none fails by itself; lists of jobs are still answered."""
    job, place = begun(site)
    (place / "manifest.json").write_text(json.dumps({"spec": {}, **changes}))
    ended = wait_for_job(site.client, job, "failed", "succeeded")
    assert (ended["status"], ended["error"]["code"]) == ("failed", "damaged_output"), ended
    assert site.client.get("/api/v1/jobs").status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {}},
        {"spec": None},
        {"scoring": {}},
        {"scoring": {"shards": {"x": 1}, "own_columns": {}, "category_column": None}},
        {"scoring": {"shards": {"0": 10**9}, "own_columns": {}, "category_column": None}},
        {"scoring": {"shards": {"0": 1}, "own_columns": {"no such column": "x"}, "category_column": None}},
        {"files": "x"},
        {"files": [1]},
        {"thresholds": {"alpha": "0') OR 1=1 --"}},
        {"rejected_reasons": {"a": "b"}},
        {"tokens": {"scored": []}},
    ],
)
def test_a_false_manifest_is_no_fault_of_the_server(
    site: Site, outputs: FinishedOutputs, changes: dict[str, Any]
) -> None:
    """Whatever of an output is asked for: it is answered, or the output is said to be damaged."""
    job, root = site.finished_job(outputs.pruned)
    change_manifest(root, **changes)
    for route in ("summary", "samples", "samples?sort=borderline", "samples/x", "rejected", "report", "files",
                  "archive", "plane", "history", "command", "files/manifest.json"):  # fmt: skip
        answer = site.client.get(f"/api/v1/jobs/{job}/{route}")
        assert answer.status_code < 500, (route, answer.text)
    assert site.client.get("/api/v1/compare", params={"a": job, "b": job}).status_code < 500
    assert site.client.get(f"/jobs/{job}").status_code < 500
    assert site.client.post(f"/api/v1/jobs/{job}/reprune", json={}).status_code < 500


def test_a_false_progress_spoils_no_list(site: Site) -> None:
    """The same for what a driver says on its way."""
    job, place = begun(site)
    (place / "_qtune" / "progress.json").write_text(json.dumps({"stage": "score", "done": "x", "eta_s": {}}))
    assert site.client.get("/api/v1/jobs").status_code == 200
    assert wait_for_job(site.client, job, "failed", "succeeded")["error"]["code"] == "damaged_output"


def begun(site: Site) -> tuple[str, Path]:
    """Return id and output of a job whose driver has written its progress and will leave nothing else."""
    made = submit_job(site.client, site.folder, "sleep 1")
    place = Path(made["output"])
    deadline = time.monotonic() + 30
    while not (place / "_qtune" / "job.json").exists():
        assert time.monotonic() < deadline, "the driver did not begin"
        time.sleep(0.01)
    return made["id"], place
