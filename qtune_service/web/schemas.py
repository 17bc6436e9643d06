"""What goes over the wire. Names and types are the API's contract; OpenAPI is made from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qtune_service.config import EngineSpec, InputSpec, JobSpec, LimitsSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.jobs.datasets import Dataset
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
        body = self.model_dump(exclude={"name", "output", "n"})
        return JobSpec.model_validate({**body, "output": {"path": self.output.path if self.output else output}})


class PreviewRequest(JobRequest):
    """A job to look at before it is run."""

    n: Annotated[int, Field(ge=1, le=50, description="How many samples.")] = 5


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
    cancel_requested: bool = Field(description="It is being stopped, and saves what it has in hand.")
    version: int = Field(description="Grows with every change; the id of its event.")
    output: str
    spec: dict[str, Any]

    @classmethod
    def of(cls, job: Job) -> JobView:
        """As the API shows it."""
        return cls.model_validate(job, from_attributes=True)


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


class DatasetView(BaseModel):
    """An uploaded dataset."""

    id: str
    uri: str = Field(description="What a job's `input.paths` calls it: `dataset://ID`.")
    name: str
    size_bytes: int
    sha256: str
    format: Literal["jsonl", "json", "parquet"]
    rows: int | None = Field(description="Records; null where counting them would be dear.")
    num_bad_rows: int | None = Field(
        description="Those of them that are no JSON object; a job rejects them. Null where that was not looked at."
    )
    first_problem: str = Field(description="Where the first of these is, and why.")
    owner: str
    created_at: datetime

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetView:
        """As the API shows it."""
        return cls.model_validate(dataset, from_attributes=True)


class DatasetPage(BaseModel):
    """Some datasets, the newest first."""

    datasets: list[DatasetView]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


class PreviewSampleView(BaseModel):
    """A sample as the model will see it. Lists run in parallel; `num_...` count the whole sample."""

    id: str
    source: str
    line: int
    text: str
    tokens: list[str]
    token_ids: list[int]
    loss_mask: list[Literal[0, 1]] = Field(description="1: trained on.")
    num_tokens: int
    num_trained: int
    num_left_out: int = Field(description="Tokens between the first 1,000 and the last 1,000, which are not shown.")
    truncated: bool = Field(description="Cut to the model's length.")


class PreviewRejectedView(BaseModel):
    """A record that the job would set aside."""

    id: str
    source: str
    line: int
    reason: str
    detail: str
    hint: str
    record: str = Field(description="Its beginning.")


class PreviewView(BaseModel):
    """What a job would begin with."""

    samples: list[PreviewSampleView]
    rejected: list[PreviewRejectedView] = Field(description="Of the records before the last sample; at most 20.")
    warnings: list[str]
    template: str = Field(description="Which chat template renders, and what it cannot show.")
