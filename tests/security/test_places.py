"""What a job's spec names cannot lead the server, or a driver, to other files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import SpecError
from qtune_service.pipeline.prepare import portable
from qtune_service.server.launchers.local import LocalLauncher
from qtune_service.server.settings import Settings
from qtune_service.spec_files import parse_spec
from qtune_service.tokenize.named_sources import is_template, read_chat_template
from tests.api.servers import serving, settings
from tests.jobs import DEMO_DATA, DEMO_MODEL
from tests.scripted_jobs import job_request, submit_job, wait_for_job
from tests.security.sites import SECRET, Site, made_site

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a site for all tests of this module. Each test has its own jobs and names."""
    with made_site(tmp_path_factory.mktemp("site")) as made:
        yield made


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
    wanted = job_request(site.folder, input={"paths": [f"{site.folder}/inputs/a.jsonl"], "chat_template": asked})
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
    job = submit_job(site.client, site.folder, input={"paths": paths, "chat_template": str(at)})
    at.unlink()
    at.symlink_to(site.folder / "secret.txt")
    wait_for_job(site.client, job["id"], "succeeded")
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
    wanted = job_request(site.folder, **json.loads(json.dumps(changes).replace("{tmp}", str(site.folder))))
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
    answer = site.client.post("/api/v1/jobs", json=job_request(site.folder, model=model))
    assert answer.status_code in (403, 422), answer.text


@pytest.mark.parametrize("revision", ["main", "v1.0", "release/2.x", "0123456789abcdef0123456789abcdef01234567"])
def test_revisions_that_are_allowed(site: Site, revision: str) -> None:
    """Branches, tags and commits."""
    model = {"name": "succeed", "revision": revision}
    assert site.client.post("/api/v1/jobs", json=job_request(site.folder, model=model)).status_code == 201


def real_server(tmp_path: Path, **changes: Any) -> Settings:
    """Return settings that allow the demo's model."""
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
            ended = wait_for_job(client, job["id"], "failed", "succeeded")
            assert ended["error"]["code"] == "not_allowed", ended
            assert "QTUNE_ALLOWED_INPUTS" in ended["error"]["hint"]
            preview = client.post("/api/v1/preview", json=wanted)
            assert (preview.status_code, preview.json()["code"]) == (403, "not_allowed"), preview.text
