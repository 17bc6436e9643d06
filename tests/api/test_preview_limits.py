"""Chat templates that take more than they may: each preview ends with a small answer, and the server goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qtune_service.errors import ModelError, TooSlowError
from qtune_service.server.jobs.previews import PreviewLimits, run_preview
from tests.api.servers import scripted, serving, settings
from tests.jobs import DEMO_DATA, DEMO_MODEL

SMALL_BYTES = 40_000
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield a client of a server that allows the demo."""
    root = tmp_path_factory.mktemp("server")
    allowed = {"allowed_inputs": (str(DEMO_DATA.parent),), "allowed_models": (DEMO_MODEL,)}
    with serving(settings(root, **allowed), scripted(root)) as made:
        made.timeout = httpx.Timeout(120)
        yield made


def spec(template: str) -> dict[str, Any]:
    """Return a job with a template of its own."""
    return {"input": {"paths": [str(DEMO_DATA)], "chat_template": template}, "model": {"name": DEMO_MODEL}}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ('a'*2000000000)|length }}", "needs more memory"),
        ("{{ 'a'*20000000 }}", "makes 20,000,000 characters"),
        ("{{ messages[0].content }}{% if " + "x" * 100_000, "not valid Jinja"),
    ],
)
def test_a_template_that_takes_too_much_is_refused(client: httpx.Client, template: str, message: str) -> None:
    """422, with what is wrong."""
    answer = client.post("/api/v1/preview", json=spec(template))
    assert (answer.status_code, answer.json()["code"]) == (422, "model"), answer.text[:1000]
    assert message in answer.json()["detail"]
    assert len(answer.content) < SMALL_BYTES


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{{ raise_exception('a'*100000000) }}", "the chat template refuses it: aaa"),
        ("{% if messages|length > 1 %}{{ ('a'*2000000000)|length }}{% endif %}x", "needs more memory"),
        ("{% if messages|length > 1 %}{{ 'a'*20000000 }}{% endif %}x", "makes 20,000,00"),
    ],
)
def test_what_a_template_makes_of_a_record_is_bounded(client: httpx.Client, template: str, detail: str) -> None:
    """The records are rejected, with the beginning of the reason."""
    answer = client.post("/api/v1/preview", json=spec(template))
    assert answer.status_code == 200, answer.text[:1000]
    (first, *_) = answer.json()["rejected"]
    assert (first["reason"], detail in first["detail"]) == ("template_error", True)
    assert len(first["detail"]) < 700
    assert len(answer.content) < SMALL_BYTES


def test_a_template_that_loops_is_ended() -> None:
    """With all of its processes."""
    before, children = time.monotonic(), set(psutil.Process().children())
    with pytest.raises(TooSlowError, match="more than 6 s"):
        run_preview({**spec(LOOP), "output": {"path": "nowhere"}}, 1, PreviewLimits(6))
    assert time.monotonic() - before < 20
    assert set(psutil.Process().children()) <= children


def test_what_a_preview_prints_is_bounded(tmp_path: Path) -> None:
    """The server reads no more than it takes, whatever the child does."""
    script = tmp_path / "child.py"
    script.write_text("while True: print('x' * 100000)")
    with pytest.raises(ModelError, match="more than 32 MiB"):
        run_preview({}, 1, PreviewLimits(), command=(sys.executable, str(script)))
