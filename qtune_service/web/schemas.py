"""What goes over the wire. Names and types are the API's contract; OpenAPI is made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from qtune_service.config import EngineSpec, InputSpec, JobSpec, LimitsSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.jobs.models import Job, JobStatus

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobRequest(_Body):
    """A job to run: a job file's fields, and a name. Without `output` the server chooses a place."""

    name: Name = "job"
    input: InputSpec
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    prune: PruneSpec | None = PruneSpec()
    output: OutputSpec | None = None
    limits: LimitsSpec = LimitsSpec()
    from_scores: str | None = None

    def to_spec(self, output: str) -> JobSpec:
        """The spec, writing to `output` where none is named."""
        body = self.model_dump(exclude={"name", "output"})
        return JobSpec.model_validate({**body, "output": {"path": self.output.path if self.output else output}})


class RepruneRequest(_Body):
    """Another pruning of the same scores."""

    name: Name | None = None
    prune: PruneSpec = PruneSpec()


class ProgressView(BaseModel):
    """How far a job is."""

    samples_done: int
    samples_total: int | None
    tokens_done: int
    tokens_per_s: float
    eta_s: float | None


class ErrorView(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    hint: str


class JobView(BaseModel):
    """A job."""

    id: str
    name: str
    status: JobStatus
    stage: str
    progress: ProgressView
    counts: dict[str, int]
    thresholds: dict[str, float | str | None]
    error: ErrorView | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    owner: str
    attempts: int
    version: int = Field(description="Grows with every change; the id of its event.")
    output: str
    launcher: str = Field(description="Where it runs: local or ray.")
    spec: dict[str, Any]

    @classmethod
    def of(cls, job: Job) -> JobView:
        """As the API shows it."""
        return cls.model_validate(job, from_attributes=True)


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(description="For the next page; null at the end.")
