"""Made-up specs and templates against a real server: each is answered soon, and none is a fault of the server's."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from qtune_service.errors import SpecError
from qtune_service.tokenize.named_sources import is_template, read_chat_template
from qtune_service.wire import JobRequest
from tests.api.servers import scripted, serving
from tests.api.servers import settings as server_settings
from tests.jobs import DEMO_DATA, DEMO_MODEL

SLOW_S = 60
ANSWER_S = 20.0
TEXTS = (
    "",
    ".",
    "..",
    "/",
    "~",
    "~root",
    "/etc/passwd",
    "/x" * 2000,
    "x" * 5000,
    "../" * 50,
    "\0",
    "\ud800",
    "\n",
    "{{",
    "{%",
    "{",
    "*",
    "[",
    "[!",
    "?",
    "refs/pr/1",
    "s3://",
    "s3://[::1",
    "s3://a/b?c",
    "file:///etc/passwd",
    "dataset://",
    "a:b",
    "os:system",
    "http://127.0.0.1:1/",
    "s3://u:p@a/b",
    "\u202e",
    "\N{PILE OF POO}" * 100,
    "-1",
    "1-2",
    "nan",
)
NUMBERS = (0, -1, 1, 2, 1 << 31, 1 << 53, 1 << 63, 10**40, -(10**40), 0.0, -0.0, 1e-320, 1e308, 0.5)
values = st.recursive(
    st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.booleans(), st.none(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(TEXTS) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
PATHS: tuple[tuple[str, ...], ...] = tuple(
    (part, *field)
    for part, schema in JobRequest.model_json_schema()["$defs"].items()
    if part.endswith("Spec")
    for field in ((name,) for name in schema.get("properties", {}))
)
"""(a part's class, its field), of all parts of a spec."""
PARTS = {
    "InputSpec": "input",
    "ModelSpec": "model",
    "EngineSpec": "engine",
    "PruneSpec": "prune",
    "LimitsSpec": "limits",
    "OutputSpec": "output",
}
changes = st.lists(st.tuples(st.sampled_from(PATHS), values), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield a client of a server that allows the demo. Its drivers do nothing."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "secret").write_text("TOPSECRET")
    chosen = server_settings(folder, allowed_inputs=(str(DEMO_DATA.parent),), allowed_models=(DEMO_MODEL, "succeed"))
    with serving(chosen, scripted(folder)) as made:
        made.timeout = httpx.Timeout(90)
        yield made


def changed(edits: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Return a good request with some fields replaced."""
    body: dict[str, Any] = {"input": {"paths": [str(DEMO_DATA)]}, "model": {"name": "succeed"}}
    for (part, field), value in edits:
        body.setdefault(PARTS[part], {})[field] = value
    return body


def send_spec(client: httpx.Client, edits: list[tuple[tuple[str, ...], Any]]) -> None:
    """Send a spec: it is taken or refused, soon, and a taken one can be listed and shown."""
    began = time.monotonic()
    content = json.dumps(changed(edits)).encode(errors="surrogatepass")
    answer = client.post("/api/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (201, 400, 403, 409, 413, 422), answer.text[:500]
    assert time.monotonic() - began < ANSWER_S
    assert "TOPSECRET" not in answer.text
    if answer.status_code == 201:
        path = answer.headers["location"]
        assert client.get(path).status_code == 200
        assert client.get(f"{path}/command").status_code == 200
    assert client.get("/api/v1/jobs").status_code == 200


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(edits=changes)
def test_specs_are_answered(client: httpx.Client, edits: list[tuple[tuple[str, ...], Any]]) -> None:
    """A few, always the same."""
    send_spec(client, edits)


PIECES = (
    "{{ messages }}",
    "{{ messages[0].content }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ raise_exception(x) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ ('a' * 2000000000)|length }}",
    "{% set x = 'a' * 10000000 %}",
    "{{ x * 100 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{% for i in range(99999999) %}",
    "{% for i in range(999) %}{% for j in range(9999) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends x %}",
    "{{ messages|tojson }}",
    "{{ messages|map('upper')|list|length }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ strftime_now('%Y') }}",
    "{{ '%9999999999s' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ lipsum(9999) }}",
    "{{ " + "(" * 500,
    "{% if true %}" * 300,
    "{%- break %}",
    "{{ namespace(a=1).a }}",
    "{{ undefined.a.b }}",
    "{# ",
    "\0",
    "\ud800",
    "}}",
    "%}",
)
templates = st.lists(st.sampled_from(PIECES) | st.text(max_size=10), min_size=1, max_size=8).map("".join)


def send_template(client: httpx.Client, template: str) -> None:
    """Send a template: the preview shows, refuses or gives up, within its limits and in a short answer; the server
    lives on.
    """
    body = {"input": {"paths": [str(DEMO_DATA)], "chat_template": template}, "model": {"name": DEMO_MODEL}, "n": 1}
    content = json.dumps(body).encode(errors="surrogatepass")
    answer = client.post("/api/v1/preview", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 403, 408, 422), answer.text[:500]
    assert len(answer.content) < 1 << 20
    assert "root:" not in answer.text
    assert client.get("/healthz").status_code == 200


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(template=templates)
def test_templates_are_text_or_refused(tmp_path: Path, template: str) -> None:
    """Whatever a file holds: it is read as text that is never a path again, or refused without being quoted."""
    at = tmp_path / "chat.jinja"
    content = template.encode(errors="surrogatepass")
    at.write_bytes(content)
    try:
        text = read_chat_template(str(at))
    except SpecError as error:
        shown = str(error).replace(str(at), "")
        assert len(template) < 12 or template not in shown
        return
    assert text.encode() == content
    assert is_template(text)
    assert read_chat_template(text) == text


def for_a_while(ask: Callable[[int], None]) -> None:
    """Go on with other examples until the time is over."""
    ends_s, first = time.monotonic() + SLOW_S, time.time_ns()
    for number in itertools.count():
        if time.monotonic() > ends_s:
            return
        ask(first + number)


@pytest.mark.slow
def test_many_specs_are_answered(client: httpx.Client) -> None:
    """As many as there is time for, and others each time."""

    def some(number: int) -> None:
        @seed(number)
        @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(edits=changes)
        def ask(edits: list[tuple[tuple[str, ...], Any]]) -> None:
            send_spec(client, edits)

        ask()

    for_a_while(some)


@pytest.mark.slow
def test_many_templates_are_previewed(client: httpx.Client) -> None:
    """The same for templates, in children that are limited."""

    def some(number: int) -> None:
        @seed(number)
        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(template=templates.filter(is_template))
        def ask(template: str) -> None:
            send_template(client, template)

        ask()

    for_a_while(some)
