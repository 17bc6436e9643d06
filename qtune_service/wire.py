"""Define the requests and responses of the API, for the server and for the client.

The OpenAPI document is made from these models. Responses may have more fields than a client knows, requests may not.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from qtune_service.config import (
    InputSpec,
    JobParts,
    JobSpec,
    OutputSpec,
    Place,
    PruneSpec,
    check_path_count,
)
from qtune_service.job_states import JobItem, JobStatus

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
MAX_REQUEST_PATHS = 10_000
"""Input paths of one request. The server checks each of them before it answers."""


def _limit_paths(body: InputSpec) -> InputSpec:
    try:
        check_path_count(body.paths, MAX_REQUEST_PATHS)
    except ValueError as error:  # the field that the error names is `input.paths`
        line = InitErrorDetails(type="value_error", loc=("paths",), input=None, ctx={"error": error})
        raise ValidationError.from_exception_data("InputSpec", [line]) from error
    return body


MAX_DEPTH = 64
"""Levels of lists and objects in a request."""
MAX_VALUES = 20_000
"""Values in a request, including keys. It limits the number of validation errors."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, value: Any) -> Any:
        check_json(value)
        return value


def check_json(value: Any) -> None:
    """Raise ValueError for JSON that is too deep, has too many values, or text that files and databases cannot store.

    One pass without recursion, so the time is linear in the size.
    """
    level, depth, num_values = [value], 0, 1
    while level:
        depth += 1
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if _NO_TEXT.search(one):
                    raise ValueError("a text has an invalid character: NUL, or half of a surrogate pair")
            elif isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
        num_values += len(below)
        if num_values > MAX_VALUES:
            raise ValueError(f"the body has more than {MAX_VALUES:,} values")
        if below and depth > MAX_DEPTH:
            raise ValueError(f"the body is nested more than {MAX_DEPTH} levels deep")
        level = below


class JobRequest(_Body, JobParts):
    """A job to run: the fields of a job file, and a name. Without `output` the server chooses a folder."""

    name: Name = "job"
    input: Annotated[InputSpec, AfterValidator(_limit_paths)]
    output: OutputSpec | None = None
    from_scores: Place | None = None

    def to_spec(self, output: str) -> JobSpec:
        """Return the spec, with `output` as its output where the request has none."""
        body = self.model_dump(exclude={"name", "output", "n"})
        return JobSpec.model_validate({**body, "output": {"path": self.output.path if self.output else output}})


class PreviewRequest(JobRequest):
    """A job to preview before it runs."""

    n: Annotated[int, Field(ge=1, le=50, description="Number of samples.")] = 5


class RepruneRequest(_Body):
    """A new pruning of the same scores."""

    name: Name | None = None
    prune: PruneSpec = PruneSpec()


class ProgressView(BaseModel):
    """Progress of a job."""

    samples_done: int
    samples_total: int | None
    tokens_done: int
    tokens_per_s: float
    eta_s: float | None
    waiting: str = Field("", description="What it waits for, and how long. Empty while it makes progress.")
    waiting_for: str = Field(
        "", description="Kind of waiting: resources, loading, shards, scoring, hanging, reading or steps."
    )
    waiting_s: float = Field(0.0, description="How long it has waited for this.")
    actors: int = Field(0, description="Scoring actors that there are.")
    actors_wanted: int = Field(0, description="Scoring actors that it requested.")
    phases: dict[str, int] = Field({}, description="Scoring actors by phase, such as starting, idle and scoring.")
    problems: list[str] = Field([], description="Actors that failed, were retired or hang, a sentence each.")


class ErrorView(BaseModel):
    """The error that ended a job."""

    code: str
    message: str
    hint: str


class JobListItem(BaseModel):
    """A job in a list or an event, without its spec, which may be large."""

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
    cancel_requested: bool = Field(description="Whether it is being stopped, which first saves its work in progress.")
    version: int = Field(description="Grows with every change. It is the id of the event.")
    output: str
    launcher: str = Field(description="Where it runs: local, ray or kuberay.")
    model: str = Field(description="Name of the model, as in the spec.")

    @classmethod
    def of(cls, job: JobItem) -> Self:
        """Return a job as the API shows it."""
        return cls.model_validate(job, from_attributes=True)


class JobView(JobListItem):
    """A job."""

    spec: dict[str, Any]


class JobPage(BaseModel):
    """A page of jobs, the newest first."""

    jobs: list[JobListItem]
    next_cursor: str | None = Field(description="Cursor of the next page, or null at the end.")


class FileView(BaseModel):
    """A file of an output."""

    path: str
    size_bytes: int
    sha256: str | None
    rows: int | None


class SamplesView(BaseModel):
    """Matching samples, and the number of all matches."""

    total: int
    samples: list[dict[str, Any]]


class RejectedView(BaseModel):
    """Rejected records."""

    total: int = Field(description="Number of records that match.")
    by_reason: dict[str, int] = Field(description="Counts over all rejected records, the most frequent reason first.")
    records: list[dict[str, Any]] = Field(description="sample_id, source, line, reason, detail, category, record.")


class CommandView(BaseModel):
    """Shell commands."""

    command: str


class HistoryView(BaseModel):
    """Speed of a job's last attempt over time, as columns: index i is one moment while it scored."""

    at_s: list[float] = Field(default=[], description="Seconds since 1970.")
    samples_done: list[int] = []
    tokens_done: list[int] = []
    tokens_per_s: list[float] = []


class FieldProblem(BaseModel):
    """An invalid field."""

    field: str
    message: str


class Problem(BaseModel):
    """The response to a failed request, as application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable name for programs.")
    detail: str = ""
    hint: str = Field(default="", description="The remedy.")
    errors: list[FieldProblem] = Field(default=[], description="Invalid fields.")


class DatasetView(BaseModel):
    """An uploaded dataset."""

    id: str
    uri: str = Field(description="Its name in a job's `input.paths`: `dataset://ID`.")
    name: str
    size_bytes: int
    sha256: str
    format: Literal["jsonl", "json", "csv", "parquet", "arrow"]
    rows: int | None = Field(description="Number of records, or null where counting them would be expensive.")
    num_bad_rows: int | None = Field(
        description="Records that are not a JSON object, which a job rejects. Null where this was not checked."
    )
    first_problem: str = Field(description="Place and reason of the first of these.")
    owner: str
    created_at: datetime

    @classmethod
    def of(cls, dataset: object) -> DatasetView:
        """Return a Dataset as the API shows it. Its module needs a database, so it is not imported here."""
        return cls.model_validate(dataset, from_attributes=True)


class DatasetPage(BaseModel):
    """A page of datasets, the newest first."""

    datasets: list[DatasetView]
    next_cursor: str | None = Field(description="Cursor of the next page, or null at the end.")


class PreviewSampleView(BaseModel):
    """A sample as the model will see it. Lists run in parallel. `num_...` count the whole sample."""

    id: str
    source: str
    line: int
    text: str
    tokens: list[str]
    token_ids: list[int]
    loss_mask: list[Literal[0, 1]] = Field(description="1 where the token is trained on.")
    num_tokens: int
    num_trained: int
    num_left_out: int = Field(description="Tokens between the first 1,000 and the last 1,000, which are not shown.")
    truncated: bool = Field(description="Whether it was cut to the model's length.")


class PreviewRejectedView(BaseModel):
    """A record that the job would reject."""

    id: str
    source: str
    line: int
    reason: str
    detail: str
    hint: str
    record: str = Field(description="Its beginning.")
    num_more: int = Field(0, description="Records of its file with the same reason that are not listed.")


class PreviewSourceView(BaseModel):
    """A file of the preview."""

    source: str
    format: str = Field(description="The format in which its records are read.")
    columns: dict[str, str] = Field(description="The use of each column.")


class PreviewView(BaseModel):
    """The first samples and rejected records of a job."""

    sources: list[PreviewSourceView] = Field([], description="How the files are read.")
    samples: list[PreviewSampleView]
    rejected: list[PreviewRejectedView] = Field(
        description="Rejected records before the last sample: at most 3 of each file and reason, and 20 in all."
    )
    warnings: list[str]
    template: str = Field(description="The chat template that renders, and its limits.")


class ServerView(BaseModel):
    """Settings of the server that concern its users."""

    version: str
    needs_token: bool
    allowed_inputs: list[str]
    allowed_outputs: list[str]
    allowed_models: list[str]
    allow_remote_code: bool
    max_running_jobs: int
    max_upload_bytes: int
    launchers: list[str]
    default_launcher: str
