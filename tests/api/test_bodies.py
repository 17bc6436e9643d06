"""JSON bodies that cost time: refused in linear time, with short answers, and while other requests are answered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from qtune_service.server.app import create_app
from qtune_service.server.routes.json_body import JsonRoute, _num_values
from qtune_service.wire import MAX_DEPTH, MAX_VALUES, check_json
from tests.api.servers import scripted, serving, settings

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}
JOB: dict[str, Any] = {"input": {"paths": ["/x/a.jsonl"]}, "model": {"name": "succeed"}}


def nested(start: bytes, end: bytes, depth: int) -> bytes:
    """Return a body of as many chains of lists or objects as fit into a MiB."""
    chain = start * depth + b"1" + end * depth
    return b'{"x":[' + b",".join([chain] * (MIB // (len(chain) + 1) - 1)) + b"]}"


def job(**changes: Any) -> bytes:
    """Return a job with changes."""
    return json.dumps({**JOB, **changes}).encode()


SHAPES: dict[str, tuple[bytes, int]] = {
    "lists to the end": (b'{"x":' + b"[" * (MIB // 2 - 8) + b"]" * (MIB // 2 - 8) + b"}", 422),
    "lists": (nested(b"[", b"]", 60), 422),
    "lists too deep": (nested(b"[", b"]", 900), 422),
    "wide and too deep": (b'{"x":' + b"[" * 900 + b",".join([b"[]"] * 300_000) + b"]" * 900 + b"}", 422),
    "objects": (nested(b'{"a":', b"}", 60), 422),
    "unknown keys": (json.dumps({f"k{i}": 1 for i in range(80_000)}).encode(), 422),
    "as many unknown keys as may be": (json.dumps({f"{i:090d}": 1 for i in range(MAX_VALUES // 2 - 1)}).encode(), 422),
    "paths that are numbers": (job(input={"paths": [1] * 300_000}), 422),
    "as many of them as may be": (job(input={"paths": [1] * (MAX_VALUES - 20)}), 422),
    "take": (job(input={"paths": ["a"], "take": {f"{i:090d}": "x" for i in range(MAX_VALUES // 2 - 20)}}), 422),
    "a long name": (job(name="x" * (MIB - 300)), 422),
    "a long path": (job(input={"paths": ["x" * (MIB - 300)]}), 422),
    "a path of slashes": (job(input={"paths": ["/x" * (MIB // 2 - 300)]}), 422),
    "many paths of slashes": (job(input={"paths": ["/x" * 2048] * 200}), 403),
    "a long model": (job(model={"name": "x" * (MIB - 300)}), 422),
    "a long template": (job(input={"paths": ["a"], "chat_template": "{" * (MIB - 300)}), 403),
    "escapes": (b'{"name":"' + b"\\ud800" * (MIB // 6 - 8) + b'"}', 422),
    "quotes": (b'"' * MIB, 422),
    "a string without end": (b'{"name":"' + b'\\"' * (MIB // 2 - 8), 422),
    "another encoding": ('{"\\"":['.encode("utf-16") + "[],".encode("utf-16-le") * 170_000, 400),
    "a long number": (b'{"input":{"paths":["a"],"limit":' + b"9" * (MIB - 40) + b"}}", 400),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yield a client of a server without tokens."""
    folder = tmp_path_factory.mktemp("server")
    with serving(settings(folder), scripted(folder)) as made:
        yield made


@pytest.mark.parametrize("name", SHAPES)
def test_a_body_of_a_mib_is_refused_soon(client: httpx.Client, name: str) -> None:
    """As a problem with a short answer, in a second or two; the worst once took 13 s."""
    body, status = SHAPES[name]
    assert len(body) <= MIB
    began = time.monotonic()
    answer = client.post("/api/v1/jobs", content=body, headers=JSON)
    took_s = time.monotonic() - began
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert len(answer.content) < 20_000
    assert len(answer.json()["errors"]) <= 20
    assert took_s < 3


def test_others_are_answered_during_a_storm(client: httpx.Client) -> None:
    """/healthz within a second, while bodies of all shapes are sent by six clients at a time."""
    ended, waits = threading.Event(), []

    def probe() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as prober:
            while not ended.is_set():
                began = time.monotonic()
                assert prober.get("/healthz").status_code == 200
                waits.append(time.monotonic() - began)
                time.sleep(0.01)

    prober = threading.Thread(target=probe)
    prober.start()
    with ThreadPoolExecutor(6) as pool:
        bodies = [body for body, _ in SHAPES.values()] * 2
        send: Callable[[bytes], Any] = lambda body: httpx.post(  # noqa: E731
            f"{client.base_url}/api/v1/jobs", content=body, headers=JSON, timeout=60
        )
        answers = list(pool.map(send, bodies))
    ended.set()
    prober.join()
    assert {answer.status_code for answer in answers} == {400, 403, 422}
    assert len(waits) > 5
    assert max(waits) < 1


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900])
def test_a_body_that_is_too_deep_is_refused(client: httpx.Client, depth: int) -> None:
    """422 that says so, also where a value of any kind may stand."""
    for body in (b'{"x":' + b"[" * depth + b"1" + b"]" * depth + b"}", b"[" * depth + b"1" + b"]" * depth):
        answer = client.post("/api/v1/jobs", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert f"more than {MAX_DEPTH} levels deep" in answer.json()["errors"][0]["message"]


def test_many_errors_are_counted_and_some_are_listed(client: httpx.Client) -> None:
    """Twenty at most, with names and messages of a bounded length."""
    for number in (21, 5000):
        answer = client.post("/api/v1/jobs", content=job(**{f"{i}{'k' * 150}": 1 for i in range(number)}), headers=JSON)
        problem = answer.json()
        assert problem["detail"] == f"{number} field(s) are invalid; the first 20 are listed"
        assert {error["message"] for error in problem["errors"]} == {"Extra inputs are not permitted"}
    answer = client.post("/api/v1/jobs", content=job(**{"k" * 100_000: 1}), headers=JSON)
    assert len(answer.json()["errors"][0]["field"]) == 200
    some = client.post("/api/v1/jobs", content=job(input={"paths": ["a"] * 5000 + [1] * 5000}), headers=JSON).json()
    assert some["detail"] == "5000 field(s) are invalid; the first 1 are listed"
    assert some["errors"][0]["message"] == "5000 values are wrong"


def test_errors_of_queries_are_bounded(client: httpx.Client) -> None:
    """A parameter that is wrong a thousand times."""
    answer = client.get(f"/api/v1/jobs?{'&'.join(['status=x'] * 1000)}")
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "1",
        '"a,b:[{"',
        r'"\\"',
        r'["\"",1]',
        r'{"a\\":["\\\"[", {"b": [1, 2, {}]}]}',
        '[[[1],[2,3]],"\\\\"]',
    ],
)
def test_values_are_counted_in_the_bytes_as_in_the_value(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least as many, and at most one more for each empty list or object: what passes the count passes the check."""
    monkeypatch.setattr("qtune_service.server.routes.json_body.MAX_VALUES", -1)
    counted, exact = 1 + _num_values(text.encode()), count(json.loads(text))
    assert exact <= counted <= exact + text.count("{}") + text.count("[]")


def count(value: Any) -> int:
    """Return how many values and keys there are."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(one) for one in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def test_the_check_of_a_value_has_limits() -> None:
    """Exactly: 64 levels, and 20,000 values."""
    check_json(json.loads("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH))
    check_json([1] * (MAX_VALUES - 1))
    for wrong in (
        json.loads("[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1)),
        [1] * MAX_VALUES,
        ["\0"],
        {"\udc00": 1},
    ):
        with pytest.raises(ValueError, match=r"more than|character"):
            check_json(wrong)


def test_every_route_with_a_body_is_a_json_route(tmp_path: Path) -> None:
    """So that none reads a body before it knows who sends it."""
    app = create_app(settings(tmp_path), scripted(tmp_path))
    found = [route for route in app.routes if isinstance(route, APIRoute) and route.body_field is not None]
    assert len(found) >= 4
    assert [route.path for route in found if not isinstance(route, JsonRoute)] == []
