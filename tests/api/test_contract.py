"""The whole API against its own OpenAPI document, with made-up requests, right ones and wrong ones."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qtune_service.job_states import JobStatus
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
"""Not `positive_data_acceptance`: rules between fields, and what the owner allows, are not in a JSON schema."""

EXAMPLES = int(os.environ.get("QTUNE_TEST_EXAMPLES", "8"))
"""Requests of an operation, right ones and as many wrong ones."""
GOOD = {200, 201, 202, 204}
EXPECTED = {
    "POST /api/v1/session": {401},
    "POST /api/v1/jobs": {403},
    "POST /api/v1/preview": {403},
    "POST /api/v1/datasets": {422},
    "POST /api/v1/jobs/{job_id}/reprune": {409},
    "POST /api/v1/jobs/{job_id}/cancel": {409},
}
"""Made-up tokens, inputs and files are none, and the job to cancel has ended; other tests have those that are right."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[Any]:
    """Run a server with two jobs: a finished one for requests that read, and a failed one for requests that change."""
    folder = tmp_path_factory.mktemp("server")
    with serving(settings(folder), scripted(folder)) as client:
        done = finished_job(folder, outputs.pruned)
        database, nothing = database_of(folder), f"{folder}/outputs/none"
        sample = client.get(f"/api/v1/jobs/{done}/samples?limit=1").json()["samples"][0]["sample_id"]
        schema = schemathesis.openapi.from_url(f"{client.base_url}/api/v1/openapi.json")
        schema.config.generation.update(
            modes=list(GenerationMode), max_examples=EXAMPLES, deterministic=True, with_security_parameters=False
        )
        rejection = schema.config.checks.negative_data_rejection
        rejection.expected_statuses = [*rejection.expected_statuses, "413"]  # a token to sign in with that is very long

        @schema.hook("map_path_parameters")
        def about_what_is_there(context: Any, values: dict[str, Any]) -> dict[str, Any]:
            name = next((name for name in ("job_id", "dataset_id") if name in (values or ())), None)
            if name is None or zlib.crc32(str(values[name]).encode(errors="replace")) % 4 == 0:
                return values
            if name == "dataset_id":
                upload = client.post("/api/v1/datasets", params={"name": "a.jsonl"}, content=b'{"text": "a"}\n')
                return {**values, name: upload.json()["id"]}
            real = {name: value for name, value in (("path", "manifest.json"), ("sample_id", sample)) if name in values}
            is_reading = context.operation.method.upper() in ("GET", "HEAD")
            return {
                **values,
                **real,
                "job_id": done if is_reading else store_job(database, nothing, JobStatus.cancelled),
            }

        @schema.hook("map_query")
        def about_the_same(context: Any, values: dict[str, Any]) -> dict[str, Any]:
            if not values or context.operation.path != "/api/v1/compare" or len(str(values.get("b"))) % 2:
                return values
            return {"a": done, "b": done}

        yield schema


def test_the_contract_holds(api: Any) -> None:
    """No 5xx, no status, type, header or body that the document does not have; what is wrong is refused.

    Every operation is met in its good case too, so that real answers are looked at.
    """
    never_good = {}
    for found in api.get_all_operations():
        operation = found.ok()
        statuses: Counter[int] = Counter()
        for mode in GenerationMode:
            with suppress(Unsatisfiable):  # there is nothing to be wrong in it
                ask(operation.as_strategy(generation_mode=mode), statuses)
        if not set(statuses) & (GOOD | EXPECTED.get(operation.label, set())):
            never_good[operation.label] = statuses
    assert not never_good


def ask(cases: Any, statuses: Counter[int]) -> None:
    """Send some requests of an operation, and check what comes."""

    @hypothesis.given(case=cases)
    @hypothesis.settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def each(case: Any) -> None:
        statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

    each()
