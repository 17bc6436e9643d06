"""What goes over the wire: the one definition of the API's contract, for the server and for the client.

OpenAPI is made from it. Answers may have more fields than a client knows; requests may not.
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
"""Input paths of one request; the server looks at each of them before it answers."""


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
"""Values in a request, keys included: so many can be wrong at most."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, value: Any) -> Any:
        check_json(value)
        return value


def check_json(value: Any) -> None:
    """Raise ValueError for JSON that is too deep, has too many values, or texts that files and databases cannot hold.

    One pass without recursion, so the time is linear in the size.
    """
    level, depth, num_values = [value], 0, 1
    while level:
        depth += 1
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if _NO_TEXT.search(one):
                    raise ValueError("a text has a character that is none: NUL, or half of a surrogate pair")
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
    """A job to run: a job file's fields, and a name. Without `output` the server chooses a place."""

    name: Name = "job"
    input: Annotated[InputSpec, AfterValidator(_limit_paths)]
    output: OutputSpec | None = None
    from_scores: Place | None = None

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


class JobListItem(BaseModel):
    """A job in a list, and in an event: all but its spec, which may be large."""

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
    """Some jobs, the newest first."""

    jobs: list[JobListItem]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


class FileView(BaseModel):
    """A file of an output."""

    path: str
    size_bytes: int
    sha256: str | None
    rows: int | None


class SamplesView(BaseModel):
    """Samples that match, and how many do in all."""

    total: int
    samples: list[dict[str, Any]]


class RejectedView(BaseModel):
    """Records that could not be used."""

    total: int = Field(description="Those that match.")
    by_reason: dict[str, int] = Field(description="Of all rejected records, the most frequent reason first.")
    records: list[dict[str, Any]] = Field(description="sample_id, source, line, reason, detail, category, record.")


class CommandView(BaseModel):
    """A line for a shell, or a few."""

    command: str


class HistoryView(BaseModel):
    """How fast a job's last attempt was over time: a place in each column is a moment while it scored."""

    at_s: list[float] = Field(default=[], description="Seconds since 1970.")
    samples_done: list[int] = []
    tokens_done: list[int] = []
    tokens_per_s: list[float] = []


class FieldProblem(BaseModel):
    """A field that is wrong."""

    field: str
    message: str


class Problem(BaseModel):
    """What a failed request answers, as application/problem+json (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="Stable, for programs.")
    detail: str = ""
    hint: str = Field(default="", description="What to do.")
    errors: list[FieldProblem] = Field(default=[], description="Fields that are wrong.")


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
    def of(cls, dataset: object) -> DatasetView:
        """As the API shows a Dataset, whose module needs a database."""
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


class ServerView(BaseModel):
    """Its owner's settings, as far as they concern those who use it."""

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
