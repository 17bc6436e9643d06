"""JobSpec: the one description of a pruning job behind flags, TOML/JSON files and REST.

Plain pydantic, free of torch, ray and vllm. Frozen, and unknown keys are errors, so that a typing mistake in
a file is found before a GPU is asked for. Every number has both bounds and every text and collection a largest length,
so that no spec can occupy a machine without end; a test walks the schema and keeps it so.

A job's spec as one line of text, so that it reaches a driver where no disk is shared.

Gzipped and in base64: what carries it (an environment variable, through a shell and through Ray, which puts the values
of its own environment in place of `${NAME}`) finds nothing in it to change.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qtune_service.errors import SpecError

FormatName = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "tokenized"]
EngineName = Annotated[str, Field(max_length=1000, pattern=r"^(auto|vllm|reference|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]
SampleStrategy = Literal["q_tuning", "random", "longest", "perplexity", "entropy", "infobatch"]
StrategyOrder = Literal["highest", "lowest"]
TokenStrategy = Literal["neighbor", "ppl", "random", "reversed", "none"]
Ratio = Annotated[float, Field(gt=0, le=1)]
Place = Annotated[str, Field(max_length=4096)]
"""A path, a URI or a hub id; 4096 is PATH_MAX of Linux."""
ColumnName = Annotated[str, Field(max_length=1000)]
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
MAX_PATHS = 100_000
"""Input paths of a spec: more than a shell passes. A server takes fewer in one request, see wire.py."""
MAX_RECORDS = 10**12
MAX_ACTORS, ACTORS_CHARS = 10_000, 40
MAX_STOP_GRACE_S = 600
SHOWN_ERRORS, SHOWN_KEY_CHARS = 20, 80
Model = TypeVar("Model", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def check_path_count(paths: Any, most: int) -> Any:
    """Return input paths as they are. Raises ValueError where there are none, or more than `most`."""
    if isinstance(paths, (list, tuple)) and not paths:
        raise ValueError("no paths: name at least one file, pattern or folder")
    if isinstance(paths, (list, tuple)) and len(paths) > most:
        raise ValueError(f"{len(paths):,} paths, at most {most:,} are allowed: name a folder or a pattern instead")
    return paths


class InputSpec(_Part):
    """What is read."""

    paths: Annotated[
        tuple[Place, ...],
        Field(max_length=MAX_PATHS, json_schema_extra={"minItems": 1}),
        BeforeValidator(lambda paths: check_path_count(paths, MAX_PATHS)),
    ]
    """Files, globs or folders; local paths or URIs (`s3://`, `gs://`)."""
    format: FormatName = "auto"
    """Record format; `auto` detects it for each file."""
    prompt_column: ColumnName | None = None
    """With `completion_column`: the columns of a prompt/completion dataset, such as question and answer."""
    completion_column: ColumnName | None = None
    """With `prompt_column`: the column of the answers."""
    category_field: ColumnName | None = None
    """Column that names a sample's category; used by `take` and by the report."""
    take: dict[Annotated[str, Field(max_length=1000)], Annotated[int, Field(ge=0, le=MAX_RECORDS)]] = Field(
        default_factory=dict, max_length=10_000
    )
    """Read only these categories, and the first N records of each, in input order."""
    limit: Annotated[int, Field(ge=1, le=MAX_RECORDS)] | None = None
    """Read only the first N records, in input order."""
    chat_template: Annotated[str, Field(max_length=1 << 20)] | None = None
    """A Jinja template, or the path of one, in place of the tokenizer's own."""
    overlong: Literal["reject", "truncate"] = "reject"
    """What happens to a sample over the model's length limit. Truncation keeps the head and is recorded."""
    shard_bytes: Annotated[int, Field(ge=1024, le=1 << 36)] | None = None
    """Input bytes a shard; by default from 128 KiB to 16 MiB, by the size of the input."""

    @model_validator(mode="after")
    def _columns_come_in_pairs(self) -> Self:
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("prompt_column and completion_column must be given together")
        if self.prompt_column is not None and self.format not in ("auto", "prompt_completion"):
            raise ValueError(f"prompt_column does not go with format {self.format!r}")
        if self.take and self.category_field is None:
            raise ValueError("take needs category_field")
        return self


class ModelSpec(_Part):
    """The model that is about to be trained."""

    name: Annotated[Place, Field(min_length=1)]
    """A local folder or a model hub id."""
    revision: Annotated[str, Field(max_length=1000)] | None = None
    """Of a hub model: a branch, tag or commit."""
    tokenizer: Place | None = None
    """Folder or hub id of the tokenizer, where it is not the model's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that the model is run in; by default the checkpoint's own."""
    max_model_len: Annotated[Tokens, Field(ge=2)] | None = None
    """Length limit in tokens; by default the model's own."""
    trust_remote_code: bool = False
    """Run code that comes with the model or its tokenizer."""


Actors = Annotated[int, Field(ge=1, le=MAX_ACTORS)]


def _parse_actors(value: Any) -> Any:
    """`2`, `"2"`, `"1-4"` and `[1, 4]` all mean what they look like."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, str):
        low, _, high = value.partition("-")
        if len(value) <= ACTORS_CHARS and low.strip().isdecimal() and (not high or high.strip().isdecimal()):
            return (int(low), int(high or low))
        raise ValueError(f"expected a number or MIN-MAX, got {value[:ACTORS_CHARS]!r}")
    return value


NumActors = Annotated[
    tuple[Actors, Actors],
    BeforeValidator(
        _parse_actors,
        json_schema_input_type=Actors
        | Annotated[str, Field(max_length=ACTORS_CHARS, examples=["MIN-MAX"])]
        | tuple[Actors, Actors],
    ),
]


class EngineSpec(_Part):
    """How the model is run."""

    name: EngineName = "auto"
    """`vllm`, `reference` (plain torch), or `auto`: vllm where it is installed and supports the model. Or
    `module:factory` of your own: called with (ModelSpec, EngineSpec) it gives a Scorer, see scoring/scorer.py."""
    num_actors: NumActors | None = None
    """Scoring actors: a number, or MIN-MAX for a pool that follows the cluster. Default: one a GPU, later ones too,
    or one on CPUs."""
    gpus_per_actor: Annotated[float, Field(ge=0, le=1024)] | None = None
    """Default: tensor_parallel_size where the cluster has GPUs, else 0."""
    cpus_per_actor: Annotated[float, Field(gt=0, le=4096)] = 1
    """CPUs that an actor reserves; its CPU threads on a cluster. On one machine the actors share all cores."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """GPUs that share one model; a scoring actor takes so many."""
    max_num_batched_tokens: Annotated[Tokens, Field(ge=16)] | None = None
    """Tokens in one forward pass. Longer samples are prefilled in chunks."""
    enable_prefix_caching: bool = True
    """Reuse the attention state of shared prompts. Scores stay exact."""
    logits_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = 256 << 20
    """Bound on the float32 logits that exist at one moment."""
    head_kernel: bool = True
    """On a GPU, let a fused kernel take the output head where it is exact and measured to be faster."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that the engine may take."""
    cpu_kv_cache_bytes: Annotated[int, Field(ge=1 << 26, le=1 << 44)] = 1 << 30
    """Attention cache of a CPU engine."""

    @model_validator(mode="after")
    def _pool_is_ordered(self) -> Self:
        if self.num_actors is not None and self.num_actors[0] > self.num_actors[1]:
            raise ValueError("num_actors: MIN must be at most MAX")
        return self


class PruneSpec(_Part):
    """The method's arguments; see docs/reference/method.md."""

    sample_keep_ratio: Ratio = 0.5
    """Share of the scored samples to keep."""
    token_keep_ratio: Ratio = 0.7
    """Share of its trained tokens that a pruned sample keeps."""
    neighbor_lambda: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of its neighbours' perplexity in a token's score."""
    bisect_max_iter: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Stop the bisection early; by default it goes on until exact."""
    min_tokens_to_prune: Tokens = 1
    """Q2 samples with fewer trained tokens keep all of them."""
    strategy: SampleStrategy = "q_tuning"
    """How samples are chosen. The others are baselines from the same scores, for comparison; see
    docs/guides/strategies.md. Their tokens are pruned in every kept sample."""
    strategy_order: StrategyOrder = "highest"
    """Which end `longest`, `perplexity` and `entropy` keep."""
    token_strategy: TokenStrategy = "neighbor"
    """How tokens are chosen: `neighbor` is the method; `ppl` looks at each token alone (lambda 0); `random`, `reversed`
    and `none` are for comparison."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of the strategies that draw: `random` and `infobatch`, and random tokens."""
    quadrant_rule: Annotated[str, Field(max_length=1000)] | None = None
    """`module:function` in place of the method's labels; see selection/plane.py:QuadrantRule."""

    @property
    def smoothing(self) -> float:
        """The weight of neighbours that the token strategy goes by."""
        return 0.0 if self.token_strategy == "ppl" else self.neighbor_lambda

    @model_validator(mode="after")
    def _rule_needs_the_plane(self) -> Self:
        if self.quadrant_rule is not None and self.strategy != "q_tuning":
            raise ValueError(f"quadrant_rule goes with strategy 'q_tuning', not with {self.strategy!r}")
        return self


class OutputSpec(_Part):
    """Where the result goes."""

    path: Annotated[Place, Field(min_length=1)]
    """A folder or URI; the same one continues a stopped job."""


class LimitsSpec(_Part):
    """When a job gives up."""

    max_rejected_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The job fails if a larger share of the records read was rejected."""
    max_shard_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """Times that a shard is tried before it counts as failed; each death of a worker that holds it is one."""
    max_failed_shards: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Failed shards that the job puts up with: their records are rejected, reason `shard_failed`. More fail the job."""
    stop_grace_s: Annotated[float, Field(ge=0, le=MAX_STOP_GRACE_S)] = 25
    """Seconds that a job told to stop (SIGTERM) takes at most to save what its actors have in hand."""


class JobSpec(_Part):
    """One pruning job."""

    input: InputSpec
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    prune: PruneSpec | None = PruneSpec()
    """None: only score; prune later with `from_scores`."""
    output: OutputSpec
    limits: LimitsSpec = LimitsSpec()
    from_scores: Place | None = None
    """Take the scores of this finished output instead of running the model; only `prune` may differ."""

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the result; the machine's shape (`num_actors`, ...) does not."""
        shape = {"num_actors", "gpus_per_actor", "cpus_per_actor", "gpu_memory_utilization", "cpu_kv_cache_bytes"}
        body = self.model_dump(mode="json", exclude={"output": True, "limits": True, "engine": shape})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def load_spec(path: Path) -> JobSpec:
    """Read a JobSpec from a `.toml` or `.json` file. Raises SpecError naming the file and the field."""
    return parse_spec(read_job_file(path), where=str(path))


def read_job_file(path: Path) -> Any:
    """The plain data of a `.toml` or `.json` file. Raises SpecError."""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SpecError(
            f"cannot read {path}: {error.strerror}", "Give the path of a .toml or .json job file."
        ) from error
    except ValueError as error:
        raise SpecError(f"{path} is not valid {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from error


def parse_spec(data: Any, where: str = "job spec") -> JobSpec:
    """Validate plain data. Raises SpecError that names each wrong field."""
    return validated(JobSpec, data, where)


def validated(kind: type[Model], data: Any, where: str) -> Model:
    """Plain data as a model. Raises SpecError that names each wrong field."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        lines = [f"  {_field_name(e['loc'])}: {e['msg']}" for e in found[:SHOWN_ERRORS]]
        more = [f"  ... and {len(found) - SHOWN_ERRORS} more"] if len(found) > SHOWN_ERRORS else []
        raise SpecError(f"{where}: {len(found)} field(s) are wrong\n" + "\n".join([*lines, *more])) from error


def _field_name(location: tuple[int | str, ...]) -> str:
    """Return `input.paths.0` of an error's location; of long keys that a user wrote, the beginning."""
    return ".".join(str(part)[:SHOWN_KEY_CHARS] for part in location) or "spec"


MAX_CHARS = 100_000
"""The system takes 128 KiB in one variable or argument."""


def pack_spec(spec: Mapping[str, Any]) -> str:
    """The text. Raises SpecError where it gets too long to be handed over."""
    packed = base64.b64encode(gzip.compress(json.dumps(dict(spec)).encode(), mtime=0)).decode()
    if len(packed) > MAX_CHARS:
        raise SpecError(
            f"the job's spec is too long to be handed to the cluster ({len(packed):,} characters, {MAX_CHARS:,} go)",
            "Name a folder or a pattern in input.paths instead of each file.",
        )
    return packed


def unpack_spec(text: str, where: str) -> JobSpec:
    """The spec that such a text holds, or JSON. Raises SpecError that names `where`."""
    try:
        plain = text if text.lstrip().startswith("{") else gzip.decompress(base64.b64decode(text, validate=True))
        return parse_spec(json.loads(plain), where=where)
    except (binascii.Error, OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{where} holds no job spec: {error}", "Give JSON, or that gzipped in base64.") from error
