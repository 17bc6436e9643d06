"""The whole API against its own OpenAPI document, with made-up requests, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qtune_service.jobs.database import open_database
from qtune_service.jobs.models import JobStatus
from qtune_service.jobs.store import JobStore, NewJob
from tests.api.servers import scripted, serving, settings
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


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[Any]:
    """A server with a finished job, of which reading requests ask, and one that failed, for those that change."""
    folder = tmp_path_factory.mktemp("server")
    with serving(settings(folder), scripted(folder)) as client:
        done = finished_job(folder, outputs.pruned)
        store = JobStore(open_database(f"sqlite:///{folder}/qtune.db"))
        schema = schemathesis.openapi.from_url(f"{client.base_url}/api/v1/openapi.json")
        schema.config.generation.update(modes=list(GenerationMode), max_examples=15, deterministic=True)

        @schema.hook("map_path_parameters")
        def about_real_jobs(context: Any, values: dict[str, Any]) -> dict[str, Any]:
            if not values or "job_id" not in values or hash(str(values["job_id"])) % 4 == 0:
                return values
            is_reading = context.operation.method.upper() in ("GET", "HEAD")
            return {**values, "job_id": done if is_reading else failed_job(store, str(folder))}

        yield schema


def failed_job(store: JobStore, folder: str) -> str:
    """One that may be resumed or deleted."""
    job, _ = store.create(NewJob("failed", {"input": {"paths": []}}, f"{folder}/outputs/none", "ann", "local"))
    store.move(job.id, JobStatus.cancelled)
    return job.id


def test_the_contract_holds(api: Any) -> None:
    """No 5xx, no status, type, header or body that the document does not have; what is wrong is refused."""
    for mode in GenerationMode:
        for found in api.get_all_operations():
            ask(found.ok().as_strategy(generation_mode=mode))


def ask(cases: Any) -> None:
    """Send some requests of an operation, and check what comes."""

    @hypothesis.given(case=cases)
    @hypothesis.settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def each(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    each()
