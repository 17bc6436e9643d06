"""Requests that mean harm, or make no sense: each has its expected answer. None is a 5xx, and none is let through."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.api.servers import scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs

JSON = {"Content-Type": "application/json"}
INPUT = "INPUTS/a.jsonl"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, its folder, and a finished job of it."""

    client: httpx.Client
    folder: Path
    job: str

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, Any, str]:
        """Status, body, and the body's text, of a request that is sent as it is: no client tidies it up."""
        url = self.client.base_url
        connection = http.client.HTTPConnection(url.host, url.port, timeout=60)
        connection.putrequest(method, path, skip_accept_encoding=True, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        is_problem = answer.headers["content-type"] == "application/problem+json"
        connection.close()
        return answer.status, json.loads(text) if is_problem else {}, text


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[Target]:
    """One that allows an input folder with a link out of it."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "secret").mkdir()
    with serving(settings(folder), scripted(folder)) as client:
        (folder / "inputs" / "link").symlink_to(folder / "secret")
        yield Target(client, folder, finished_job(folder, outputs.pruned))


@dataclass(frozen=True, slots=True)
class Attack:
    """A request, and what it is answered."""

    name: str
    path: str
    status: int
    code: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


def file(path: str, status: int = 404, code: str = "not_found") -> Attack:
    """Return an attack by the path of a file of an output."""
    return Attack(f"file {path[:40]}", f"/api/v1/jobs/JOB/files/{path}", status, code)


def ranged(header: str, value: str, status: int, code: str) -> Attack:
    """Return an attack by a Range header."""
    path = "/api/v1/jobs/JOB/files/manifest.json"
    return Attack(f"{header}: {value[:30]}", path, status, code, headers={header: value})


def job(status: int, code: str, **changes: Any) -> Attack:
    """Return an attack by a job that would be right without the changes."""
    body = {"input": {"paths": [INPUT]}, "model": {"name": "succeed"}, **changes}
    text = json.dumps(body).encode()
    return Attack(f"job {str(changes)[:70]}", "/api/v1/jobs", status, code, "POST", JSON, text)


def paths(*texts: str) -> dict[str, Any]:
    """Return the input part of a job."""
    return {"paths": texts}


def body(content: bytes, kind: str | None, status: int, code: str) -> Attack:
    """Any content in a job's place."""
    headers = {} if kind is None else {"Content-Type": kind}
    return Attack(f"body {content[:20]!r} {kind}", "/api/v1/jobs", status, code, "POST", headers, content)


def query(path: str, status: int = 422, code: str = "invalid_request") -> Attack:
    """Parameters of a list."""
    return Attack(f"query {path[:60]}", f"/api/v1/jobs{path}", status, code)


def where(condition: str) -> Attack:
    """Return an attack by a condition on samples."""
    return query(f"/JOB/samples?where={quote(condition)}", code="query")


GOOD = json.dumps({"input": {"paths": [INPUT]}, "model": {"name": "succeed"}}).encode()
ATTACKS = [
    # paths out of an output
    file("../../qtune.db"),
    file("..%2f..%2fqtune.db"),
    file("%2e%2e/%2e%2e/qtune.db"),
    file("%252e%252e%252fqtune.db"),
    file("pruned/../manifest.json"),
    file("./manifest.json"),
    file("/etc/passwd"),
    file("%2fetc%2fpasswd"),
    file("//etc/passwd"),
    file("file:///etc/passwd"),
    file("s3://bucket/key"),
    file("manifest.json%00"),
    file("manifest.json%00.png"),
    file("tokenizer/%00"),
    file("tokenizer/.."),
    file("tokenizer/%2e%2e"),
    file("tokenizer/..%2fmanifest.json"),
    file("tokenizer/..%5cmanifest.json"),
    file("..%5c..%5cqtune.db"),
    file("C:%5cwindows"),
    file("_qtune/job.json"),
    file("pruned"),
    file("pruned/"),
    file(""),
    file("%ff%fe"),
    file("%C0%AE%C0%AE/%C0%AE%C0%AE/qtune.db"),
    file("manifest.json%0d%0aX-Injected:%20yes"),
    file("a" * 5000),
    # parts of files
    ranged("Range", "bytes=abc", 416, "range_not_satisfiable"),
    ranged("Range", "bytes=0-0,2-3", 416, "range_not_satisfiable"),
    ranged("Range", "bytes=-0", 416, "range_not_satisfiable"),
    ranged("Range", "bytes=5-2", 416, "range_not_satisfiable"),
    ranged("Range", "bytes=0-" + "9" * 5000, 416, "range_not_satisfiable"),
    # places that no job may touch
    job(403, "not_allowed", input=paths("/etc/passwd")),
    job(403, "not_allowed", input=paths(INPUT, "/etc/passwd")),
    job(403, "not_allowed", input=paths("INPUTS/../qtune.db")),
    job(403, "not_allowed", input=paths("INPUTS/link/x")),
    job(403, "not_allowed", input=paths("INPUTS/link/*.jsonl")),
    job(403, "not_allowed", input=paths("INPUTS2/a.jsonl")),
    job(403, "not_allowed", input=paths("file:///etc/passwd")),
    job(403, "not_allowed", input=paths("file://INPUTS/a.jsonl")),
    job(403, "not_allowed", input=paths("http://169.254.169.254/latest/meta-data")),
    job(403, "not_allowed", input=paths("s3://corpus/a?endpoint_override=http://169.254.169.254")),
    job(403, "not_allowed", input=paths("github://user:secret@repo/x")),
    job(403, "not_allowed", input=paths("~/x")),
    job(403, "not_allowed", input=paths("")),
    job(403, "not_allowed", input=paths("s3://[::1")),
    job(403, "not_allowed", output={"path": "/tmp/x"}),
    job(403, "not_allowed", output={"path": "INPUTS/../secret"}),
    job(403, "not_allowed", from_scores="/etc"),
    job(403, "not_allowed", input={"paths": [INPUT], "chat_template": "/etc/passwd"}),
    job(403, "not_allowed", model={"name": "/etc"}),
    job(403, "not_allowed", model={"name": "succeed/../../etc"}),
    job(403, "not_allowed", model={"name": "succeed", "tokenizer": "/etc"}),
    job(403, "not_allowed", output={"path": "OUTPUTS"}),
    job(403, "not_allowed", output={"path": "OUTPUTS/*/../../x"}),
    job(403, "not_allowed", input={"paths": [INPUT], "chat_template": "OUTPUTS/{/../../qtune.db"}),
    job(403, "not_allowed", input={"paths": [INPUT], "chat_template": "INPUTS/{/../../qtune.db"}),
    job(403, "not_allowed", input={"paths": [INPUT], "chat_template": "INPUTS/link/x"}),
    job(422, "spec", input={"paths": [INPUT], "chat_template": "INPUTS/missing"}),
    job(422, "spec", input={"paths": [INPUT], "chat_template": "INPUTS"}),
    job(403, "not_allowed", model={"name": "succeed", "tokenizer": "tests"}),
    job(403, "not_allowed", model={"name": "succeed", "revision": "refs/pr/3"}),
    job(403, "not_allowed", model={"name": "succeed", "revision": "pr/3"}),
    job(403, "not_allowed", model={"name": "succeed", "revision": "x/../refs/pr/3"}),
    # numbers, texts and lists without end
    job(422, "invalid_request", limits={"stop_grace_s": 1e9}),
    job(422, "invalid_request", input=paths(*["dataset://x"] * 15_000)),
    job(422, "invalid_request", input=paths("a" * 500_000)),
    job(422, "invalid_request", engine={"num_actors": "1-1000000000"}),
    job(422, "invalid_request", engine={"logits_bytes": 10**30}),
    job(422, "invalid_request", prune={"seed": 1 << 63}),
    job(422, "invalid_request", from_scores="a" * 500_000),
    # code
    job(403, "not_allowed", model={"name": "succeed", "trust_remote_code": True}),
    job(403, "not_allowed", engine={"name": "os:system"}),
    job(403, "not_allowed", prune={"quadrant_rule": "os:system"}),
    # texts and numbers that are none
    job(422, "invalid_request", input=paths("INPUTS/a\0b")),
    job(422, "invalid_request", input=paths("INPUTS/\ud800")),
    job(422, "invalid_request", input={"paths": [INPUT], "category_field": "c", "take": {"a\0": 1}}),
    job(422, "invalid_request", name="a\r\nX-Injected: yes"),
    job(422, "invalid_request", name="\ud800"),
    job(422, "invalid_request", name=""),
    job(422, "invalid_request", name="x" * 201),
    job(422, "invalid_request", **{"\ud800": 1}),
    job(422, "invalid_request", prune={"sample_keep_ratio": float("nan")}),
    job(422, "invalid_request", prune={"sample_keep_ratio": float("inf")}),
    job(422, "invalid_request", engine={"gpus_per_actor": float("inf")}),
    job(422, "invalid_request", limits={"stop_grace_s": float("inf")}),
    job(422, "invalid_request", engine={"num_actors": "9" * 5000}),
    job(422, "invalid_request", input={"paths": []}),
    job(422, "invalid_request", input=None),
    # bodies that are none
    body(b"[" * 900_000, "application/json", 422, "invalid_request"),
    body(b'{"a":' * 150_000, "application/json", 422, "invalid_request"),
    body(b"[" * 15_000, "application/json", 400, "bad_request"),
    body(b"1" * 5000, "application/json", 400, "bad_request"),
    body(b" " * (1 << 21), "application/json", 413, "too_large"),
    body(b"\xff\xfe", "application/json", 400, "bad_request"),
    body(b"", "application/json", 422, "invalid_request"),
    body(b"null", "application/json", 422, "invalid_request"),
    body(b"[]", "application/json", 422, "invalid_request"),
    body(GOOD + b"x", "application/json", 422, "invalid_request"),
    body(GOOD, "text/plain", 422, "invalid_request"),
    body(GOOD, None, 422, "invalid_request"),
    body(b'{"x":' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 422, "invalid_request"),
    body(json.dumps({f"k{i}": 1 for i in range(80_000)}).encode(), "application/json", 422, "invalid_request"),
    body('{"name":"a"}'.encode("utf-16"), "application/json", 400, "bad_request"),
    body(b"a=b", "application/x-www-form-urlencoded", 422, "invalid_request"),
    body(b"--x--", "multipart/form-data; boundary=x", 422, "invalid_request"),
    body(
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "application/xml", 422, "invalid_request"
    ),
    # lists
    query("?limit=0"),
    query("?limit=201"),
    query("?limit=99999999999999999999999"),
    query("?limit=" + "9" * 5000),
    query("?cursor=%00", code="spec"),
    query("?cursor=%ff", code="spec"),
    query("?cursor=MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwJw", code="spec"),
    query("?cursor=" + "A" * 200),
    query("?q=%00"),
    query("?q=" + "x" * 201),
    query("?status=running%27--"),
    query("/JOB/samples?limit=101"),
    query("/JOB/samples?offset=99999999999999999999"),
    query("/JOB/samples?quadrant=Q5"),
    query("/JOB/samples?sort=%00", code="query"),
    query("/JOB/samples?sort=num_tokens;drop%20table%20x", code="query"),
    query("/JOB/samples/%00", code="query"),
    query("/JOB/samples/x%27%20or%201=1", code="query"),
    query("/JOB/logs?tail=-1"),
    query("/JOB/logs?tail=100001"),
    query("/%00", 404, "not_found"),
    query("/%F0%9F%99%82", 404, "not_found"),
    query("/" + "a" * 5000, 404, "not_found"),
    query("/..%2f..%2f", 404, "not_found"),
    query("/", 404, "not_found"),
    # conditions
    where("1=1) union select * from duckdb_settings() --"),
    where("read_text('/etc/passwd') is null"),
    where("(select count(*) from read_csv('/etc/passwd')) > 0"),
    where("num_tokens > 0; attach '/tmp/x' as y"),
    where("copy (select 1) to '/tmp/x'"),
    where("pragma database_list"),
    where("getenv('HOME') = ''"),
    where("install httpfs"),
    where("current_setting('memory_limit') = ''"),
    where("repeat('x', 100000000) = 'y'"),
    where("json_contains(text, text)"),
    where("list_aggregate(range(100000), 'string_agg', '[') = ''"),
    where("list_aggr([1], 'string_agg', '[') = ''"),
    where("(" * 900 + "1" + ")" * 900),
    where(" and ".join(["num_tokens > 0"] * 100)),
    where("not " * 450 + "true"),
    where("\0"),
    where("x("),
    # headers
    Attack("event id", "/api/v1/jobs/JOB/events", 422, "invalid_request", headers={"Last-Event-ID": "x"}),
    Attack("long id", "/api/v1/jobs/JOB/events", 422, "invalid_request", headers={"Last-Event-ID": "9" * 5000}),
    Attack("no key", "/api/v1/jobs", 422, "invalid_request", "POST", {**JSON, "Idempotency-Key": ""}, GOOD),
    Attack("long key", "/api/v1/jobs", 422, "invalid_request", "POST", {**JSON, "Idempotency-Key": "x" * 201}, GOOD),
    Attack("large sign-in", "/api/v1/session", 413, "too_large", "POST", JSON, b" " * 5000),
    Attack("status x 1000", "/api/v1/jobs?" + "&".join(["status=x"] * 1000), 422, "invalid_request"),
    Attack("no token", "/api/v1/jobs", 401, "not_signed_in", headers={"Authorization": "Bearer x"}),
    Attack("rebinding", "/api/v1/jobs", 403, "foreign_origin", headers={"Host": "evil.example"}),
    Attack("absolute", "http://evil.example/api/v1/jobs", 403, "foreign_origin"),
    # methods
    Attack("trace", "/api/v1/jobs", 405, "method_not_allowed", "TRACE"),
    Attack("connect", "/api/v1/jobs", 405, "method_not_allowed", "CONNECT"),
    Attack("preflight", "/api/v1/jobs", 405, "method_not_allowed", "OPTIONS", {"Origin": "https://evil.example"}),
    Attack("form", "/api/v1/jobs/JOB", 405, "method_not_allowed", "POST", {"X-HTTP-Method-Override": "DELETE"}, b""),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_harm_is_refused(target: Target, attack: Attack) -> None:
    """With the status and the code of the table, as a problem that gives nothing away."""
    path = attack.path.replace("JOB", target.job)
    inputs, places = (str(target.folder / name).encode() for name in ("inputs", "outputs"))
    content = None if attack.body is None else attack.body.replace(b"INPUTS", inputs).replace(b"OUTPUTS", places)
    status, problem, text = target.send(attack.method, path, attack.headers, content)
    assert (status, problem.get("code")) == (attack.status, attack.code), text[:500]
    for secret in ("root:", "Traceback", "secret@", "user:", "169.254.169.254?"):
        assert secret not in text


def test_nothing_of_it_was_queued(target: Target) -> None:
    """Only the job that was there."""
    found = target.client.get("/api/v1/jobs").json()["jobs"]
    assert [one["id"] for one in found] == [target.job]
