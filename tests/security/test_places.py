"""What a job's spec names and what an output holds cannot lead the server, or a driver, to other files."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.config import parse_spec
from qtune_service.data.plan import Plan
from qtune_service.data.template_text import is_template, read_chat_template
from qtune_service.errors import OutputConflictError, SpecError
from qtune_service.jobs.ids import new_id
from qtune_service.jobs.local import LocalLauncher
from qtune_service.jobs.models import JobStatus
from qtune_service.outputs.finished import FinishedOutput
from qtune_service.outputs.folder import Output
from qtune_service.pipeline.origin import adopt_scores
from qtune_service.pipeline.portable import portable
from qtune_service.pipeline.stages import read_plan
from qtune_service.settings import Settings
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.api.test_jobs_api import body, submit, until
from tests.finished_outputs import FinishedOutputs
from tests.jobs import DEMO_DATA, DEMO_MODEL

SECRET = "root:x:0:0:top secret"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Site:
    """A server with scripted drivers, its folder, and in this one a secret beside what it allows."""

    client: httpx.Client
    folder: Path

    def finished_job(self, finished: FinishedOutput) -> tuple[str, Path]:
        """A job and its output, a copy of another one."""
        root = copied(finished, self.folder / "outputs" / new_id())
        spec = finished.spec.model_dump(mode="json")
        return store_job(database_of(self.folder), str(root), JobStatus.succeeded, spec), root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For all tests here; each has its own jobs and names."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "secret.txt").write_text(SECRET)
    inputs = folder / "inputs"
    for below in (inputs / "{", inputs / "[a]", folder / "outputs" / "{", folder / "outputs" / "*"):
        below.mkdir(parents=True)
    (inputs / "link").symlink_to(folder / "secret.txt")
    (inputs / "[a]" / "link").symlink_to(folder / "secret.txt")
    (folder / "outputs" / "*" / "link").symlink_to(folder)
    (inputs / "second-order").write_text(str(folder / "secret.txt"))
    (inputs / "binary").write_bytes(b"{{\xff" + SECRET.encode())
    os.mkfifo(inputs / "fifo")
    for loop in (inputs / "loop", folder / "outputs" / "loop"):
        loop.symlink_to(loop)
    acts = ("succeed", "sleep 1", "sleep")
    with serving(settings(folder, allowed_models=acts, max_running_jobs=8), scripted(folder)) as client:
        yield Site(client, folder)


def copied(finished: FinishedOutput, to: Path) -> Path:
    """An output that a test may change."""
    shutil.copytree(finished.root, to)
    return to


def change_manifest(root: Path, **changes: Any) -> None:
    """As somebody who can write to an output may."""
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- a template, or the path of one


@pytest.mark.parametrize(
    "template",
    [
        "{tmp}/secret.txt",
        "{tmp}/outputs/{{/../../secret.txt",
        "{tmp}/outputs/{{/../../../../../../etc/passwd",
        "{tmp}/inputs/{{/../../secret.txt",
        "{tmp}/inputs/link",
        "{tmp}/inputs/*/../../secret.txt",
        "{tmp}/inputs/[a]/link",
        "{tmp}/inputs/../secret.txt",
        "{tmp}/inputs/second-order",
        "{tmp}/inputs/binary",
        "{tmp}/inputs/fifo",
        "{tmp}/inputs/missing",
        "{tmp}/inputs",
        "file://{tmp}/secret.txt",
        "~/secret.txt",
        "secret.txt",
        "",
        "x" * 5000,
    ],
)
def test_a_template_reads_no_other_file(site: Site, template: str) -> None:
    """Refused at submission and in previews, without a word of what is in the file."""
    asked = template.replace("{tmp}", str(site.folder)).replace("{{", "{")
    wanted = body(site.folder, input={"paths": [f"{site.folder}/inputs/a.jsonl"], "chat_template": asked})
    for path in ("jobs", "preview"):
        answer = site.client.post(f"/api/v1/{path}", json=wanted)
        assert answer.status_code in (403, 422), answer.text
        assert SECRET not in answer.text
        assert "chat" in answer.text or "template" in answer.text


def test_a_template_is_text_from_submission_on(site: Site) -> None:
    """The stored spec has what its file held then; what the file or its name becomes later changes nothing."""
    at = site.folder / "inputs" / "chat.jinja"
    at.write_text(TEMPLATE)
    paths = [f"{site.folder}/inputs/a.jsonl"]
    job = submit(site.client, site.folder, input={"paths": paths, "chat_template": str(at)})
    at.unlink()
    at.symlink_to(site.folder / "secret.txt")
    until(site.client, job["id"], "succeeded")
    given = json.loads((site.folder / "jobs" / f"{job['id']}.json").read_text())
    assert job["spec"]["input"]["chat_template"] == given["input"]["chat_template"] == TEMPLATE


def test_text_is_never_a_path_again(tmp_path: Path) -> None:
    """What was read is a template by the same rule, so to read it again opens nothing."""
    at = tmp_path / "{{x" / "chat.jinja"
    at.parent.mkdir()
    at.write_text(TEMPLATE)
    assert read_chat_template(str(at)) == str(at), "a value with marks of Jinja is a template, also where a file exists"
    plain = tmp_path / "chat.jinja"
    for text in (TEMPLATE, "{{ x }}", "{% if x %}", f"{tmp_path}/chat.jinja {{{{"):
        plain.write_text(text)
        once = read_chat_template(str(plain))
        assert once == read_chat_template(once) == text
        assert is_template(once)
    for text in (str(tmp_path / "secret"), "", "{", "{# a comment #}"):
        plain.write_text(text)
        with pytest.raises(SpecError) as caught:
            read_chat_template(str(plain))
        assert len(text) < 2 or text not in str(caught.value).replace(str(plain), "")


def test_a_driver_gets_text(tmp_path: Path) -> None:
    """A spec that was made portable twice, as by server and driver, is the same."""
    at = tmp_path / "chat.jinja"
    at.write_text(TEMPLATE)
    spec = parse_spec(
        {
            "input": {"paths": ["/a"], "chat_template": str(at)},
            "model": {"name": "m"},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    once = portable(spec)
    assert once.input.chat_template == TEMPLATE
    assert portable(once) == once


# --- other settings that name a place


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"output": {"path": "{tmp}/outputs"}}, "output.path"),
        ({"output": {"path": "{tmp}/outputs/"}}, "output.path"),
        ({"output": {"path": "{tmp}/outputs/."}}, "output.path"),
        ({"output": {"path": "{tmp}/outputs/*/link/x"}}, "output.path"),
        ({"output": {"path": "{tmp}/outputs/*/../../x"}}, "output.path"),
        ({"output": {"path": "{tmp}/outputs/loop/x"}}, "output.path"),
        ({"from_scores": "{tmp}/outputs/*/link"}, "from_scores"),
        ({"from_scores": "{tmp}/outputs/../secret.txt"}, "from_scores"),
        ({"model": {"name": "succeed", "tokenizer": "{tmp}/secret.txt"}}, "model.tokenizer"),
        ({"model": {"name": "succeed", "tokenizer": "tests"}}, "model.tokenizer"),
        ({"model": {"name": "."}}, "model.name"),
        ({"model": {"name": ".."}}, "model.name"),
        ({"model": {"name": "~root"}}, "model.name"),
        ({"model": {"name": "~nobody-of-that-name/x"}}, "model.name"),
        ({"model": {"name": "succeed/../../etc"}}, "model.name"),
        ({"model": {"name": "succeed\\..\\x"}}, "model.name"),
        ({"model": {"name": "s3://[::1"}}, "model.name"),
        ({"input": {"paths": ["{tmp}/inputs/loop"]}}, "input.paths"),
        ({"input": {"paths": ["dataset://../../x"]}}, "input.paths"),
        ({"input": {"paths": ["{tmp}/inputs/" + "x" * 3000]}}, ""),
    ],
)
def test_places_are_really_below(site: Site, changes: dict[str, Any], field: str) -> None:
    """After links, and as one kind of name: a folder that exists is no hub id, a wildcard in an output is a letter."""
    wanted = body(site.folder, **json.loads(json.dumps(changes).replace("{tmp}", str(site.folder))))
    answer = site.client.post("/api/v1/jobs", json=wanted)
    if field:
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed"), answer.text
        assert answer.json()["detail"].startswith(f"{field}: ")
    else:
        assert answer.status_code in (201, 403, 422), answer.text


@pytest.mark.parametrize(
    "revision",
    ["refs/pr/3", "REFS/pr/3", "refs", "pr/3", "/refs/pr/3", "./refs/pr/3", "x/../refs/pr/3", "refs%2Fpr%2F3", "a b",
     "@{u}", "-x", "", "a..b", "main~1", "main^", "x/", "//", "r\u00e9fs/pr/1"],
)  # fmt: skip
def test_a_revision_is_a_branch_a_tag_or_a_commit(site: Site, revision: str) -> None:
    """References to proposals hold weights of strangers."""
    model = {"name": "succeed", "revision": revision}
    answer = site.client.post("/api/v1/jobs", json=body(site.folder, model=model))
    assert answer.status_code in (403, 422), answer.text


@pytest.mark.parametrize("revision", ["main", "v1.0", "release/2.x", "0123456789abcdef0123456789abcdef01234567"])
def test_revisions_that_are_allowed(site: Site, revision: str) -> None:
    """Branches, tags and commits."""
    model = {"name": "succeed", "revision": revision}
    assert site.client.post("/api/v1/jobs", json=body(site.folder, model=model)).status_code == 201


def real_server(tmp_path: Path, **changes: Any) -> Settings:
    """Settings that allow the demo's model."""
    return settings(tmp_path, allowed_models=(DEMO_MODEL,), **changes)


def test_files_behind_patterns_are_really_below(tmp_path: Path) -> None:
    """A pattern or folder leads to a link out of the allowed folders: the job fails and reads nothing there."""
    (tmp_path / "inputs" / "linked").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    shutil.copy(DEMO_DATA, tmp_path / "private" / "data.jsonl")
    (tmp_path / "inputs" / "linked" / "a.jsonl").symlink_to(tmp_path / "private" / "data.jsonl")
    (tmp_path / "inputs" / "folder").symlink_to(tmp_path / "private")
    inputs = tmp_path / "inputs"
    with serving(real_server(tmp_path), {"local": LocalLauncher(tmp_path / "jobs")}) as client:
        for pattern in (f"{inputs}/l*/a.jsonl", f"{inputs}/f*/data.jsonl"):
            wanted = {"input": {"paths": [pattern]}, "model": {"name": DEMO_MODEL}, "engine": {"name": "reference"}}
            job = client.post("/api/v1/jobs", json=wanted).json()
            ended = until(client, job["id"], "failed", "succeeded")
            assert ended["error"]["code"] == "not_allowed", ended
            assert "QTUNE_ALLOWED_INPUTS" in ended["error"]["hint"]
            preview = client.post("/api/v1/preview", json=wanted)
            assert (preview.status_code, preview.json()["code"]) == (403, "not_allowed"), preview.text


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
    part = root / "scores" / "part-00000.parquet"
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
    assert not (target / "scores" / "part-00000.parquet").exists()


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
        ended = until(client, job["id"], "failed", "succeeded")
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
    Plan.from_json(json.dumps({**plan, "shards": [{**shard, "uri": remote}]})).verify_places(
        Output("s3://b/o?endpoint_override=http://127.0.0.1:1").at("_qtune", "input")
    )
    at.write_text(json.dumps({**plan, "shards": [{**shard, "uri": uri.replace("{out}", str(tmp_path))}]}))
    with pytest.raises(OutputConflictError, match="no input of the job"):
        read_plan(Output(str(tmp_path)))


# --- files of outputs that the server reads

ROUTES = {
    "report.html": "report",
    "summary_statistics.json": "summary",
    "plane.json": "plane",
    "manifest.json": "summary",
    "_qtune/progress.json": "history",
    "scores/part-00000.parquet": "samples",
    "quadrants/part-00000.parquet": "samples",
    "rejected/part-*.parquet": "rejected",
    "tokenizer/tokenizer.json": "samples",
    "pruned/part-00000.parquet": "files/pruned/part-00000.parquet",
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
    answer = site.client.get(f"/api/v1/jobs/{job}/{ROUTES[path]}", timeout=20)
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
    ended = until(site.client, job, "failed", "succeeded")
    assert (ended["status"], ended["error"]["code"]) == ("failed", "damaged_output"), ended
    assert site.client.get("/api/v1/jobs").status_code == 200


def test_a_false_progress_spoils_no_list(site: Site) -> None:
    """The same for what a driver says on its way."""
    job, place = begun(site)
    (place / "_qtune" / "progress.json").write_text(json.dumps({"stage": "score", "done": "x", "eta_s": {}}))
    assert site.client.get("/api/v1/jobs").status_code == 200
    assert until(site.client, job, "failed", "succeeded")["error"]["code"] == "damaged_output"


def begun(site: Site) -> tuple[str, Path]:
    """A job whose driver has written its progress and will leave nothing else: its id and output."""
    made = submit(site.client, site.folder, "sleep 1")
    place = Path(made["output"])
    deadline = time.monotonic() + 30
    while not (place / "_qtune" / "job.json").exists():
        assert time.monotonic() < deadline, "the driver did not begin"
        time.sleep(0.01)
    return made["id"], place
