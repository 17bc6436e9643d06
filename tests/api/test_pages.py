"""server/routes/pages.py and server/routes/pages.py: shells, static files, and a form that is the request's schema."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
import typer
from fastapi.testclient import TestClient

from qtune_service.cli import app as commands
from qtune_service.server.app import create_app
from qtune_service.server.form import form_fields
from qtune_service.server.routes import pages
from qtune_service.wire import JobRequest
from tests.api.servers import scripted, settings

PAGES = ("/", "/new", "/compare", "/sign-in")


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """Return a client of a server without tokens."""
    return TestClient(create_app(settings(tmp_path), scripted(tmp_path)), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", PAGES)
def test_pages_obey_their_own_policy(client: TestClient, path: str) -> None:
    """No inline script, style or handler, nothing from elsewhere; the policy would refuse them."""
    page = client.get(path)
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|https?://", page.text)


def test_static_files_of_pages_exist_and_are_cached(client: TestClient) -> None:
    """Every file that a page or a module names exists, and browsers may cache it."""
    pages_text = [client.get(path).text for path in (*PAGES, "/jobs/x")]
    todo = {url for text in pages_text for url in re.findall(r'"(/static/[^"]+)"', text)}
    found: set[str] = set()
    while todo:
        url = todo.pop()
        found.add(url)
        file = client.get(url)
        assert (file.status_code, "immutable" in file.headers["cache-control"]) == (200, True), url
        if url.endswith(".js"):
            todo |= {urljoin(url, module) for module in re.findall(r'from "(\.[^"]+)"', file.text)} - found
    assert any("/report/js/" in url for url in found)


def test_files_of_another_version_are_not_kept(client: TestClient) -> None:
    """A page that another version of the server gave out gets the file, but asks again."""
    file = client.get("/static/0000000000000000/js/api.js")
    assert (file.status_code, file.headers["cache-control"]) == (200, "no-cache")
    again = client.get("/static/0000000000000000/js/api.js", headers={"If-None-Match": file.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "", "js", "js/../../pages.py", "js/%2e%2e/%2e%2e/pages.py",
        "report/report.html.j2", "report/css/../report.html.j2",
    ],
)  # fmt: skip
def test_static_files_are_those_of_their_folder(client: TestClient, path: str) -> None:
    """Nothing beside them is served, and no listing."""
    assert client.get(f"/static/{pages.digest()}/{path}").status_code == 404


def test_pages_want_a_sign_in_where_the_server_does(tmp_path: Path) -> None:
    """All but the page for it lead there, with the way back."""
    from tests.api.test_sessions import token_store

    token_store(tmp_path).create("ann", "read")  # type: ignore[arg-type]
    app = create_app(settings(tmp_path, require_tokens=True), scripted(tmp_path))
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    for path in PAGES[:-1]:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?next={path}")
    assert client.get("/sign-in").status_code == 200


def test_the_form_has_every_field_of_a_request() -> None:
    """With the schema's defaults; only what a request cannot do without is required."""
    asked = {name for name, field in JobRequest.model_fields.items() if name not in ("from_scores", "name")}
    fields = form_fields()
    assert {name.partition(".")[0] for name in fields} == asked | {"name"}
    assert {name for name, field in fields.items() if field.is_required} == {"input.paths", "model.name"}
    assert all(field.help for name, field in fields.items() if name != "name")
    made = JobRequest.model_validate({"input": {"paths": ["a"]}, "model": {"name": "m"}}).model_dump(mode="json")
    for name, field in fields.items():
        part, _, last = name.partition(".")
        if name not in ("input.paths", "model.name", "output.path", "name"):
            assert field.default == made[part][last], name


def test_the_forms_flags_are_the_commands() -> None:
    """So the command that the page shows is one."""
    prune = typer.main.get_command(commands).commands["prune"]  # type: ignore[attr-defined]
    known = {flag for param in prune.params for flag in (*param.opts, *param.secondary_opts)}
    flags = {field.flag for field in form_fields().values() if field.flag}
    assert flags <= known
    assert {f"--no-{flag[2:]}" for flag in ("--prefix-caching",)} <= known
    unnamed = {name for name, field in form_fields().items() if field.flag is None}
    assert not {f"--{name.partition('.')[2].replace('_', '-')}" for name in unnamed} & known
