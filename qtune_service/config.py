"""JobSpec: the description of a pruning job, and the only place of its fields, defaults, limits and help.

The command line, the form of the web page, the REST API and docs/reference are generated from it. job_fields.py lists
the fields for them. A field also carries a `Flag` or `JOB_FILE_ONLY` as `Annotated` metadata, which pydantic keeps out
of the JSON schema.

The models are plain pydantic, free of torch, ray and vllm. They are frozen and refuse unknown keys, so that a typing
mistake in a job file is found before a GPU is reserved. Every number has both bounds and every text and collection a
maximum length, so that no spec can occupy a machine without end. A test walks the schema and checks it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from qtune_service import vllm_arguments

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
HUB = re.compile("hf://", re.IGNORECASE)
MAX_PATHS = 100_000
"""Most input paths of a spec: more than a shell passes. A request to a server has a lower limit, see wire.py."""
MAX_RECORDS = 10**12
MAX_ACTORS, ACTORS_CHARS = 10_000, 40
MAX_STOP_GRACE_S = 600
MAX_STALL_S = 1_000_000
ArgumentName = Annotated[str, Field(max_length=100, pattern=r"^[a-z][a-z0-9_]*$")]


class FlagGroup(StrEnum):
    """Sections of `--help`, in their order."""

    job = "Data, model and result"
    keep = "How much to keep"
    read = "How records are read"
    run = "How the model is run"
    compare = "Other methods, for comparison"
    failures = "Failures and restarts"
    rare = "Rarely needed"


@dataclass(frozen=True, slots=True)
class Flag:
    """Flag of a field: its section in `--help`, and names other than the field's own."""

    group: FlagGroup
    metavar: str = ""
    """Placeholder of the value in `--help`. Empty for switches and short lists of choices."""
    name: str = ""
    """Flag without its dashes, where it is not the field's name."""
    short: str = ""
    """A second, short name, with its dash."""
    label: str = ""
    """Label in the form, where the field's name says too little."""


JOB_FILE_ONLY = "job file only"
"""Marks a field that has no flag: a job that sets it needs a job file."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def check_path_count(paths: Any, most: int) -> Any:
    """Return the input paths unchanged. Raises ValueError if there are none, or more than `most`."""
    if isinstance(paths, (list, tuple)) and not paths:
        raise ValueError("no paths: name at least one file, pattern or folder")
    if isinstance(paths, (list, tuple)) and len(paths) > most:
        raise ValueError(f"{len(paths):,} paths, at most {most:,} are allowed: name a folder or a pattern instead")
    return paths


class InputSpec(_Part):
    """The data to read."""

    paths: Annotated[
        tuple[Place, ...],
        Field(max_length=MAX_PATHS, json_schema_extra={"minItems": 1}),
        BeforeValidator(lambda paths: check_path_count(paths, MAX_PATHS)),
        Flag(FlagGroup.job, "DATA", name="data"),
    ]
    """Files, glob patterns or folders: local paths, or URIs such as `s3://bucket/folder`. Or datasets of the hub:
    `hf://datasets/ORG/NAME`, also with `@REVISION` and a path behind."""
    format: Annotated[FormatName, Flag(FlagGroup.read, "FORMAT")] = "auto"
    """Record format. `auto` detects it for each file."""
    prompt_column: Annotated[ColumnName | None, Flag(FlagGroup.read, "COLUMN")] = None
    """Column of the prompts, such as `question`. Needs `completion_column`."""
    completion_column: Annotated[ColumnName | None, Flag(FlagGroup.read, "COLUMN")] = None
    """Column of the answers, such as `answer`. Needs `prompt_column`."""
    messages_column: Annotated[ColumnName | None, Flag(FlagGroup.read, "COLUMN")] = None
    """Column of the conversations, a list of turns, such as `dialog`."""
    column_map: Annotated[dict[ColumnName, ColumnName], Flag(FlagGroup.read, "YOURS=KNOWN")] = Field(
        default_factory=dict, max_length=1000
    )
    """Names of your columns or of keys of turns, and the known names that they stand for: `who=role`."""
    role_map: Annotated[
        dict[ColumnName, Literal["system", "user", "assistant", "tool"]], Flag(FlagGroup.read, "YOURS=KNOWN")
    ] = Field(default_factory=dict, max_length=1000)
    """Names of your roles, and what they are: `bot=assistant`. Known are system, user, assistant and tool."""
    config: Annotated[ColumnName | None, Flag(FlagGroup.read, "CONFIG")] = None
    """Configuration (subset) of a dataset of the hub. By default the one that the dataset names."""
    split: Annotated[ColumnName | None, Flag(FlagGroup.read, "SPLIT")] = None
    """Split of a dataset of the hub, or of a folder of `save_to_disk`, such as `train`."""
    category_field: Annotated[ColumnName | None, Flag(FlagGroup.read, "COLUMN")] = None
    """Column that names a record's category, for `take` and for the report."""
    take: Annotated[
        dict[Annotated[str, Field(max_length=1000)], Annotated[int, Field(ge=0, le=MAX_RECORDS)]],
        Flag(FlagGroup.read, "CATEGORY=N"),
    ] = Field(default_factory=dict, max_length=10_000)
    """Read only these categories, and of each the first N records in input order."""
    limit: Annotated[Annotated[int, Field(ge=1, le=MAX_RECORDS)] | None, Flag(FlagGroup.read, "N")] = None
    """Read only the first N records, in input order."""
    chat_template: Annotated[Annotated[str, Field(max_length=1 << 20)] | None, Flag(FlagGroup.read, "TEMPLATE")] = None
    """Jinja template, the path of one, or `trl:NAME` of the installed TRL. It replaces the tokenizer's own."""
    overlong: Annotated[Literal["reject", "truncate"], Flag(FlagGroup.read)] = "reject"
    """Samples over the model's length limit: reject them, or keep their first tokens."""
    shard_bytes: Annotated[Annotated[int, Field(ge=1024, le=1 << 36)] | None, Flag(FlagGroup.rare, "BYTES")] = None
    """Input bytes per shard. By default 128 KiB to 16 MiB, by the size of the input."""

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("`prompt_column` and `completion_column` must be given together")
        if self.prompt_column is not None and self.format not in ("auto", "prompt_completion"):
            raise ValueError(f"`prompt_column` cannot be used with `format` {self.format!r}")
        if self.messages_column is not None and self.prompt_column is not None:
            raise ValueError("`messages_column` and `prompt_column` cannot be given together")
        if self.messages_column is not None and self.format not in ("auto", "messages", "sharegpt"):
            raise ValueError(f"`messages_column` cannot be used with `format` {self.format!r}")
        if len(set(self.column_map.values())) < len(self.column_map):
            raise ValueError("`column_map` maps two columns to one name")
        if self.take and self.category_field is None:
            raise ValueError("`take` needs `category_field`")
        if self.config is not None and not self.reads_hub:
            raise ValueError("`config` needs a dataset of the hub in `paths`: hf://datasets/ORG/NAME")
        return self

    @property
    def reads_hub(self) -> bool:
        """Return whether a path is on the Hugging Face hub."""
        return any(map(HUB.match, self.paths))


class ModelSpec(_Part):
    """The model that you are about to train."""

    name: Annotated[Place, Field(min_length=1), Flag(FlagGroup.job, "MODEL", name="model")]
    """Model that you are about to train: a local folder or a hub id."""
    revision: Annotated[Annotated[str, Field(max_length=1000)] | None, Flag(FlagGroup.rare, "REVISION")] = None
    """Branch, tag or commit of a hub model."""
    tokenizer: Annotated[Place | None, Flag(FlagGroup.rare, "TOKENIZER")] = None
    """Folder or hub id of the tokenizer, if it is not the model's own."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Flag(FlagGroup.run, "DTYPE")] = "auto"
    """Number type that the model is run in. `auto` is the checkpoint's own."""
    max_model_len: Annotated[Annotated[Tokens, Field(ge=2)] | None, Flag(FlagGroup.run, "N")] = None
    """Length limit of a sample in tokens. By default the model's own."""
    trust_remote_code: Annotated[bool, Flag(FlagGroup.rare)] = False
    """Run Python code that comes with the model or its tokenizer."""


Actors = Annotated[int, Field(ge=1, le=MAX_ACTORS)]


def _parse_actors(value: Any) -> Any:
    """Return (MIN, MAX) for `2`, `"2"` or `"1-4"`. Other values are left to pydantic."""
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
    """Settings of the engine that runs the model."""

    name: Annotated[
        EngineName, Flag(FlagGroup.run, "auto|vllm|reference|MODULE:FACTORY", name="engine", label="Engine")
    ] = "auto"
    """`vllm`, `reference` (plain torch), or `auto`: vLLM where it is installed and supports the model. Or
    `module:factory` of your own, called with (ModelSpec, EngineSpec); it returns a Scorer (scoring/scorer.py)."""
    num_actors: Annotated[NumActors | None, Flag(FlagGroup.run, "N|MIN-MAX")] = None
    """Scoring actors: a number, or MIN-MAX for a pool that follows the cluster. By default one per GPU, also for GPUs
    that join later, or one on CPUs."""
    gpus_per_actor: Annotated[Annotated[float, Field(ge=0, le=1024)] | None, Flag(FlagGroup.rare, "N")] = None
    """GPUs per actor. By default `tensor_parallel_size` where the cluster has GPUs, else 0."""
    cpus_per_actor: Annotated[float, Field(gt=0, le=4096), JOB_FILE_ONLY] = 1
    """CPUs that an actor reserves, and its CPU threads on a cluster. On one machine the actors share all cores."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024), Flag(FlagGroup.run, "N")] = 1
    """GPUs that share one model. A scoring actor takes this many."""
    max_num_batched_tokens: Annotated[Annotated[Tokens, Field(ge=16)] | None, Flag(FlagGroup.run, "N")] = None
    """Tokens per forward pass. Longer samples are prefilled in chunks."""
    enable_prefix_caching: Annotated[bool, Flag(FlagGroup.rare, name="prefix-caching")] = True
    """Reuse the attention state of shared prompts. Scores stay exact."""
    logits_bytes: Annotated[Annotated[int, Field(ge=1 << 20, le=1 << 40)] | None, JOB_FILE_ONLY] = None
    """Most bytes of float32 logits that exist at one moment. By default 256 MiB, 1 GiB on a GPU of 70 GiB or more, 2
    GiB from 120 GiB."""
    head_kernel: Annotated[bool, JOB_FILE_ONLY] = True
    """On a GPU, use a fused kernel for the output head where it is exact and measured to be faster."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), JOB_FILE_ONLY] = 0.9
    """Share of a GPU's memory that the engine may take."""
    cpu_kv_cache_bytes: Annotated[int, Field(ge=1 << 26, le=1 << 44), JOB_FILE_ONLY] = 1 << 30
    """Bytes of the attention cache of a CPU engine."""
    vllm: Annotated[dict[ArgumentName, JsonValue], Field(max_length=100), JOB_FILE_ONLY] = {}
    """More arguments of vLLM's engine, by their names there, such as `quantization`. Some are refused; see
    docs/operations/large-models.md."""

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.num_actors is not None and self.num_actors[0] > self.num_actors[1]:
            raise ValueError("`num_actors`: MIN must be at most MAX")
        if self.vllm and self.name == "reference":
            raise ValueError("`vllm` has arguments of vLLM, and `name` is 'reference'")
        if problem := vllm_arguments.problem_of(self.vllm):
            raise ValueError(problem)
        return self

    @property
    def gpus_per_engine(self) -> int:
        """Return how many devices one engine of vLLM runs on: tensor times pipeline parallel."""
        return self.tensor_parallel_size * int(self.vllm.get("pipeline_parallel_size", 1))  # type: ignore[arg-type]


class PruneSpec(_Part):
    """Settings of the choice of samples and tokens. docs/reference/method.md explains the method."""

    sample_keep_ratio: Annotated[Ratio, Flag(FlagGroup.keep, "RATIO")] = 0.5
    """Share of the scored samples to keep."""
    token_keep_ratio: Annotated[Ratio, Flag(FlagGroup.keep, "RATIO")] = 0.7
    """Share of its trained tokens that a pruned (Q2) sample keeps."""
    neighbor_lambda: Annotated[float, Field(ge=0, le=1), Flag(FlagGroup.rare, "WEIGHT")] = 0.5
    """Weight of the neighbours' perplexity in a token's score."""
    bisect_max_iter: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | None, Flag(FlagGroup.rare, "N")] = None
    """Emulate a bisection with at most this many steps. By default the thresholds are exact."""
    min_tokens_to_prune: Annotated[Tokens, Flag(FlagGroup.keep, "N")] = 1
    """Q2 samples with fewer trained tokens keep all of them."""
    keep_end_of_turn: Annotated[bool, Flag(FlagGroup.keep)] = True
    """Never remove the last token of a trained span, nor a stop token of the model, so that the model learns to stop.
    `false` is the paper to the letter."""
    strategy: Annotated[SampleStrategy, Flag(FlagGroup.compare, "STRATEGY")] = "q_tuning"
    """How samples are chosen. `q_tuning` is the method. The others are baselines from the same scores, which prune the
    tokens of every kept sample; see docs/guides/strategies.md."""
    strategy_order: Annotated[StrategyOrder, Flag(FlagGroup.compare)] = "highest"
    """End that the strategies `longest`, `perplexity` and `entropy` keep."""
    token_strategy: Annotated[TokenStrategy, Flag(FlagGroup.compare, "STRATEGY")] = "neighbor"
    """How tokens are chosen. `neighbor` is the method, `ppl` scores each token alone (lambda 0), `random`, `reversed`
    and `none` are for comparison."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), Flag(FlagGroup.compare, "N")] = 0
    """Seed of the random strategies of samples (`random`, `infobatch`) and of tokens (`random`)."""
    quadrant_rule: Annotated[Annotated[str, Field(max_length=1000)] | None, Flag(FlagGroup.rare, "MODULE:FUNCTION")] = (
        None
    )
    """`module:function` that labels the samples in place of the method; see QuadrantRule in selection/plane.py."""

    @property
    def smoothing(self) -> float:
        """Return the weight of neighbours that the token strategy uses."""
        return 0.0 if self.token_strategy == "ppl" else self.neighbor_lambda

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.quadrant_rule is not None and self.strategy != "q_tuning":
            raise ValueError(f"`quadrant_rule` requires `strategy` 'q_tuning', not {self.strategy!r}")
        return self


class OutputSpec(_Part):
    """The place of the result."""

    path: Annotated[
        Place,
        Field(min_length=1),
        Flag(
            FlagGroup.job,
            "OUTPUT",
            name="output",
            short="-o",
            label="Output folder or URI; by default a folder of the server",
        ),
    ]
    """Folder or URI of the result. The same one continues a stopped job."""


FailedActors = Annotated[int, Field(ge=0, le=MAX_ACTORS)]


class LimitsSpec(_Part):
    """The conditions under which a job fails or stops."""

    max_rejected_ratio: Annotated[float, Field(ge=0, le=1), Flag(FlagGroup.failures, "RATIO")] = 0.5
    """Fail the job if a larger share of the records read was rejected."""
    max_shard_attempts: Annotated[int, Field(ge=1, le=1000), Flag(FlagGroup.failures, "N")] = 3
    """Attempts at a shard before it counts as failed. The death of a worker that holds it is an attempt."""
    max_failed_shards: Annotated[int, Field(ge=0, le=1_000_000_000), Flag(FlagGroup.failures, "N")] = 0
    """Failed shards to skip: their records are rejected, with reason `shard_failed`. More of them fail the job."""
    max_failed_actors: Annotated[Annotated[int, Field(ge=0, le=MAX_ACTORS)] | None, Flag(FlagGroup.failures, "N")] = (
        None
    )
    """Scoring actors that may fail to start or be retired, in all. By default any number, while one of them works."""
    stall_s: Annotated[float, Field(ge=1, le=MAX_STALL_S), JOB_FILE_ONLY] = 1800
    """Seconds without a finished sample after which a scoring actor is reported as hanging. It ends nothing."""
    stop_grace_s: Annotated[float, Field(ge=0, le=MAX_STOP_GRACE_S), JOB_FILE_ONLY] = 25
    """Seconds that a stopped job (SIGTERM) may take to save the work in progress of its actors."""


def _none_if_false(value: Any) -> Any:
    return None if value is False else value


class JobParts(_Part):
    """The parts that a job file and a request to a server have in common."""

    input: InputSpec
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    prune: Annotated[PruneSpec | None, BeforeValidator(_none_if_false)] = PruneSpec()
    """None, or `false` in TOML, which has no null: only score; prune later with `from_scores`."""
    limits: LimitsSpec = LimitsSpec()


SCORES_VERSION = 1
"""Version of tokens, masks and scores. A change that makes old and new scores incomparable increases it."""
MACHINE_FIELDS = frozenset(
    {
        *("num_actors", "gpus_per_actor", "cpus_per_actor", "gpu_memory_utilization", "cpu_kv_cache_bytes"),
        *("tensor_parallel_size", "max_num_batched_tokens", "enable_prefix_caching", "logits_bytes", "head_kernel"),
    }
)
"""Fields of `engine` that decide how fast a job runs and where it fits, and not its scores."""


class JobSpec(JobParts):
    """One pruning job."""

    output: OutputSpec
    from_scores: Annotated[Place | None, Flag(FlagGroup.job, "OUTPUT")] = None
    """Take the scores of this finished output instead of running the model. Only the pruning may differ from it."""

    def defining(self) -> dict[str, Any]:
        """Return the fields that decide the result, without defaults. Runs of one output agree in them.

        Without defaults, so that a field that a later version adds does not change the jobs that do not use it.
        """
        body = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"output": True, "limits": True, "engine": set(MACHINE_FIELDS)}
        )
        engine = body.pop("engine", {})
        if arguments := vllm_arguments.defining(engine.pop("vllm", {})):
            engine["vllm"] = arguments
        if engine:
            body["engine"] = engine
        return {**body, "scores_version": SCORES_VERSION}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the fields that decide the result."""
        return hashlib.sha256(json.dumps(self.defining(), sort_keys=True).encode()).hexdigest()
