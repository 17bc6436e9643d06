"""Previews over HTTP, with real child processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qtune_service.errors import EngineError, TooSlowError
from qtune_service.server.jobs.previews import PreviewLimits, run_preview
from tests.api.servers import scripted, serving, settings
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, qtune

NO_MODEL = "/nowhere/none"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield a client of a server that allows the demo, and models that do not exist."""
    root = tmp_path_factory.mktemp("server")
    allowed = {"allowed_inputs": (str(DEMO_DATA.parent),), "allowed_models": (DEMO_MODEL, NO_MODEL)}
    with serving(settings(root, **allowed), scripted(root)) as made:
        made.timeout = httpx.Timeout(120)
        yield made


def look(client: httpx.Client, path: str, model: str = DEMO_MODEL, **more: Any) -> httpx.Response:
    """Ask for a preview."""
    body = {"input": {"paths": [path], **more.pop("input", {})}, "model": {"name": model}, **more}
    return client.post("/api/v1/preview", json=body)


def test_a_dataset_is_previewed(client: httpx.Client) -> None:
    """Text, tokens and mask of as many samples as were asked for."""
    made = client.post("/api/v1/datasets", params={"name": "demo.jsonl"}, content=DEMO_DATA.read_bytes()).json()
    response = look(client, made["uri"], n=2)
    assert response.status_code == 200, response.text
    found = response.json()
    assert [sample["line"] for sample in found["samples"]] == [1, 2]
    assert found["samples"][0]["text"].endswith("The dalox lives in gardens.<|im_end|>\n")
    assert (found["samples"][0]["num_tokens"], found["samples"][0]["num_trained"]) == (33, 7)
    assert (found["rejected"], found["warnings"]) == ([], [])


def test_what_the_child_meets_is_a_problem(client: httpx.Client) -> None:
    """A missing model, columns that are not there."""
    missing = look(client, str(DEMO_DATA), NO_MODEL)
    assert (missing.status_code, missing.json()["code"]) == (422, "model"), missing.text
    columns = look(client, str(DEMO_DATA), input={"prompt_column": "question", "completion_column": "answer"})
    assert (columns.status_code, columns.json()["code"]) == (422, "data")
    assert columns.json()["hint"]


@pytest.mark.parametrize(
    ("path", "model", "more", "status", "code"),
    [
        ("/etc/passwd", DEMO_MODEL, {}, 403, "not_allowed"),
        (str(DEMO_DATA), "/etc", {}, 403, "not_allowed"),
        (str(DEMO_DATA), DEMO_MODEL, {"output": {"path": "/etc"}}, 403, "not_allowed"),
        ("dataset://01m81mn7t0fzx1sg1h406fwtnb", DEMO_MODEL, {}, 422, "unknown_dataset"),
        (str(DEMO_DATA), DEMO_MODEL, {"n": 51}, 422, "invalid_request"),
        (str(DEMO_DATA), DEMO_MODEL, {"n": 0}, 422, "invalid_request"),
    ],
)
def test_what_a_job_may_not_do_a_preview_may_not(
    client: httpx.Client, path: str, model: str, more: dict[str, Any], status: int, code: str
) -> None:
    """Refused before any process is started."""
    response = look(client, path, model, **more)
    assert (response.status_code, response.json()["code"]) == (status, code)


def child(tmp_path: Path, text: str) -> tuple[str, ...]:
    """Return a command that runs some code in place of ours."""
    script = tmp_path / "child.py"
    script.write_text(text)
    return (sys.executable, str(script))


def test_a_preview_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """It does not hold its place for ever."""
    with pytest.raises(TooSlowError, match="more than"):
        run_preview({}, 1, PreviewLimits(0.5), command=child(tmp_path, "import time; time.sleep(60)"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import sys; sys.exit('no such library')", "status 1: no such library"),
        ("import os; os.abort()", "status -6"),
        ("""print('{"error": {"code": "engine", "message": "none", "hint": "install it"}}')""", "none"),
    ],
)
def test_a_preview_that_breaks_is_told(tmp_path: Path, text: str, told: str) -> None:
    """As ours, not as the caller's fault."""
    with pytest.raises(EngineError, match=told):
        run_preview({}, 1, PreviewLimits(), command=child(tmp_path, text))


def test_the_command_shows_the_same_in_a_terminal() -> None:
    """Without colours by signs: what is trained on stands between them."""
    done = qtune("preview", DEMO_DATA, "--model", DEMO_MODEL, "--limit", 1)
    assert done.returncode == 0, done.stderr
    assert "{+The dalox lives in gardens.<|im_end|>+}" in done.stdout
    assert "33 tokens, 7 trained on" in done.stdout


def test_the_command_wants_a_model_or_a_job_file() -> None:
    """It says so, with exit code 2."""
    done = qtune("preview", DEMO_DATA)
    assert (done.returncode, "no model given" in done.stderr) == (2, True)
    assert qtune("preview", REPO / "none.toml").returncode == 2
