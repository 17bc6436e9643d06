"""Two jobs side by side: settings that differ, and what became of the samples that both have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from qtune_service.errors import OutputConflictError, QTuneError
from qtune_service.job_states import Job, JobStatus
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.dependencies import Reader, TheServer
from qtune_service.server.questions.client import Questions
from qtune_service.server.routes.jobs import FAILURES
from qtune_service.wire import JobView

router = APIRouter(prefix="/compare", tags=["outputs"])
NOT_SETTINGS = {"output.path"}
Id = Annotated[str, Query(min_length=1, max_length=100, description="Id of a job.")]


class Difference(BaseModel):
    """A setting that is not the same."""

    field: str
    a: Any
    b: Any


class ComparedSamples(BaseModel):
    """What became of the samples that both jobs have scored."""

    common: int
    only_in_a: int = Field(description="Samples that only a has.")
    only_in_b: int
    kept_by_both: int
    kept_by_a: int = Field(description="Kept by a, and dropped by b.")
    kept_by_b: int
    kept_by_neither: int
    overlap: float | None = Field(description="Kept by both, of those kept by either; null where none is.")
    moves: dict[str, dict[str, int]] = Field(description="Quadrant in a -> quadrant in b -> samples.")
    examples_a: list[dict[str, Any]] = Field(description="Some that only a keeps, as a shows them.")
    examples_b: list[dict[str, Any]]


class CompareView(BaseModel):
    """Two jobs."""

    a: JobView
    b: JobView
    tokens_a: dict[str, int] = Field(description="Tokens of the result: scored, before and after pruning.")
    tokens_b: dict[str, int]
    settings: list[Difference]
    samples: ComparedSamples | None
    why_no_samples: str = Field(default="", description="Why samples are not compared.")


@router.get("", responses=FAILURES)
def compare_jobs(
    server: TheServer, _who: Reader, a: Id, b: Id, examples: Annotated[int, Query(ge=0, le=20)] = 5
) -> CompareView:
    """Settings that differ, overlap of what is kept, moves between quadrants, and some samples that only one keeps."""
    jobs = server.jobs.store.get(a), server.jobs.store.get(b)
    specs = [dict(_flat(job.spec)) for job in jobs]
    names = [name for name in dict.fromkeys([*specs[0], *specs[1]]) if name not in NOT_SETTINGS]
    different = [name for name in names if specs[0].get(name) != specs[1].get(name)]
    samples, why = _samples(server.questions, *jobs, examples)
    return CompareView(
        a=JobView.of(jobs[0]),
        b=JobView.of(jobs[1]),
        tokens_a=_tokens(jobs[0]),
        tokens_b=_tokens(jobs[1]),
        settings=[Difference(field=name, a=specs[0].get(name), b=specs[1].get(name)) for name in different],
        samples=samples,
        why_no_samples=why,
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of a spec's fields. An empty mapping has none, so it reads as a field that is not there."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _output(job: Job) -> FinishedOutput:
    if job.status is not JobStatus.succeeded:
        raise OutputConflictError(f"{job.name} is {job.status}: it has no result", "Wait until it succeeded.")
    return FinishedOutput(job.output, may_be_link=False)


def _tokens(job: Job) -> dict[str, int]:
    return _output(job).tokens if job.status is JobStatus.succeeded else {}


def _samples(questions: Questions, a: Job, b: Job, num_examples: int) -> tuple[ComparedSamples | None, str]:
    """The comparison, or why there is none."""
    try:
        outputs = _output(a), _output(b)
        found = questions.compare(
            (outputs[0].root, outputs[1].root), (_version(outputs[0]), _version(outputs[1])), num_examples
        )
    except QTuneError as error:
        return None, f"{error.message}. {error.hint}"
    if found is None:
        return None, "The two jobs have no sample in common: they read other files."
    return ComparedSamples.model_validate(found), ""


def _version(finished: FinishedOutput) -> str:
    """The version of an output's manifest, by which a child knows whether it has opened this one."""
    found = finished.folder.stat("manifest.json")
    return found.version if found is not None else ""
