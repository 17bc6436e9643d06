"""The flags of `qtune prune` and `qtune score`: their names, help and groups, and the JobSpec that they make."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from qtune_service.config import JobSpec, SampleStrategy, StrategyOrder, TokenStrategy, parse_spec
from qtune_service.errors import SpecError


class Format(StrEnum):
    """Record formats."""

    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    tokenized = "tokenized"


class Dtype(StrEnum):
    """Types the model is run in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Overlong(StrEnum):
    """What happens to samples over the length limit."""

    reject = "reject"
    truncate = "truncate"


IN, MODEL, ENGINE, METHOD, RUN = "Input", "Model", "Engine", "Method", "Run"
DataArg = Annotated[
    list[str] | None, typer.Argument(help="Files, globs or folders; local paths or s3:// URIs.", show_default=False)
]
ModelOpt = Annotated[
    str | None,
    typer.Option("--model", help="Folder or hub id of the model about to be trained.", rich_help_panel=MODEL),
]
OutputOpt = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="Folder of the result; the same one continues a stopped job.", rich_help_panel=RUN
    ),
]
RevisionOpt = Annotated[str | None, typer.Option("--revision", help="Revision of a hub model.", rich_help_panel=MODEL)]
TokenizerOpt = Annotated[
    str | None, typer.Option("--tokenizer", help="Tokenizer, where it is not the model's own.", rich_help_panel=MODEL)
]
DtypeOpt = Annotated[Dtype, typer.Option("--dtype", help="Type the model is run in.", rich_help_panel=MODEL)]
MaxLenOpt = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        min=2,
        help="Length limit in tokens. [default: the model's]",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
TrustOpt = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=MODEL)
]
FormatOpt = Annotated[Format, typer.Option("--format", help="Record format.", rich_help_panel=IN)]
PromptOpt = Annotated[str | None, typer.Option("--prompt-column", help="Column of the prompt.", rich_help_panel=IN)]
CompletionOpt = Annotated[
    str | None, typer.Option("--completion-column", help="Column of the completion.", rich_help_panel=IN)
]
CategoryOpt = Annotated[
    str | None, typer.Option("--category-field", help="Column that names a category.", rich_help_panel=IN)
]
TakeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--take",
        metavar="CAT=N",
        help="Read the first N records of this category, and no others. Repeatable.",
        rich_help_panel=IN,
        show_default=False,
    ),
]
LimitOpt = Annotated[int | None, typer.Option("--limit", min=1, help="Read the first N records.", rich_help_panel=IN)]
TemplateOpt = Annotated[
    str | None,
    typer.Option(
        "--chat-template", help="Jinja template or its path, in place of the tokenizer's.", rich_help_panel=IN
    ),
]
OverlongOpt = Annotated[Overlong, typer.Option("--overlong", help="Samples over the length limit.", rich_help_panel=IN)]
ShardOpt = Annotated[
    int | None, typer.Option("--shard-bytes", min=1024, help="Input bytes a shard.", rich_help_panel=RUN)
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="auto|vllm|reference|MODULE:FACTORY",
        help="auto prefers vllm; a factory makes a Scorer of your own.",
        rich_help_panel=ENGINE,
    ),
]
ActorsOpt = Annotated[
    str | None,
    typer.Option(
        "--num-actors",
        metavar="N|MIN-MAX",
        help="Scoring actors. [default: one a GPU, or one]",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
GpusOpt = Annotated[
    float | None, typer.Option("--gpus-per-actor", min=0, help="GPUs of one actor.", rich_help_panel=ENGINE)
]
TensorOpt = Annotated[
    int, typer.Option("--tensor-parallel-size", min=1, help="GPUs that share one model.", rich_help_panel=ENGINE)
]
BatchOpt = Annotated[
    int | None,
    typer.Option("--max-num-batched-tokens", min=16, help="Tokens in one forward pass.", rich_help_panel=ENGINE),
]
PrefixOpt = Annotated[
    bool,
    typer.Option("--prefix-caching/--no-prefix-caching", help="Compute shared prompts once.", rich_help_panel=ENGINE),
]
SampleRatioOpt = Annotated[
    float, typer.Option("--sample-keep-ratio", help="Share of samples to keep, (0, 1].", rich_help_panel=METHOD)
]
TokenRatioOpt = Annotated[
    float,
    typer.Option("--token-keep-ratio", help="Share of tokens to keep in Q2 samples, (0, 1].", rich_help_panel=METHOD),
]
LambdaOpt = Annotated[
    float,
    typer.Option("--neighbor-lambda", help="Weight of neighbours in a token's score, [0, 1].", rich_help_panel=METHOD),
]
BisectOpt = Annotated[
    int | None,
    typer.Option(
        "--bisect-max-iter",
        min=1,
        help="Stop the bisection early. [default: until exact]",
        rich_help_panel=METHOD,
        show_default=False,
    ),
]
MinTokensOpt = Annotated[
    int,
    typer.Option("--min-tokens-to-prune", min=1, help="Q2 samples with fewer tokens keep all.", rich_help_panel=METHOD),
]
StrategyOpt = Annotated[
    SampleStrategy,
    typer.Option("--strategy", help="How samples are chosen; the others are for comparison.", rich_help_panel=METHOD),
]
OrderOpt = Annotated[
    StrategyOrder,
    typer.Option("--strategy-order", help="Which end longest, perplexity, entropy keep.", rich_help_panel=METHOD),
]
TokenStrategyOpt = Annotated[
    TokenStrategy, typer.Option("--token-strategy", help="How tokens are chosen.", rich_help_panel=METHOD)
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Of strategies that draw.", rich_help_panel=METHOD)]
RuleOpt = Annotated[
    str | None,
    typer.Option("--quadrant-rule", metavar="MODULE:FUNCTION", help="Your own labels.", rich_help_panel=METHOD),
]
RejectedOpt = Annotated[
    float, typer.Option("--max-rejected-ratio", help="Fail if more records were rejected.", rich_help_panel=RUN)
]
AttemptsOpt = Annotated[
    int,
    typer.Option(
        "--max-shard-attempts", min=1, help="Tries of a shard before it counts as failed.", rich_help_panel=RUN
    ),
]
FailedOpt = Annotated[
    int,
    typer.Option(
        "--max-failed-shards",
        min=0,
        help="Failed shards to put up with: their records go.",
        rich_help_panel=RUN,
    ),
]
OverwriteOpt = Annotated[
    bool, typer.Option("--overwrite", help="Remove an earlier output there and start anew.", rich_help_panel=RUN)
]
RayOpt = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        envvar="RAY_ADDRESS",
        help="A running cluster. [default: this machine]",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
FromScoresOpt = Annotated[
    str | None,
    typer.Option(
        "--from-scores",
        metavar="OUT",
        help="Reuse the scores of a finished output; no model is run.",
        rich_help_panel=IN,
    ),
]


def parse_take(entries: list[str] | None) -> dict[str, int]:
    """Quotas of `--take CATEGORY=N`. Raises SpecError."""
    take = [entry.rpartition("=") for entry in entries or ()]
    if any(not category or not count.isdigit() for category, _, count in take):
        raise SpecError(f"--take wants CATEGORY=N, got {' '.join(entries or ())!r}", "For example --take math=100.")
    return {category: int(count) for category, _, count in take}


def build_spec(flags: dict[str, Any], method: dict[str, Any] | None) -> JobSpec:
    """A JobSpec of a command's flags."""
    if not flags["data"]:
        raise SpecError("no data given", "qtune prune DATA... --model M --output OUT")
    if flags["model"] is None:
        raise SpecError("no model given", "Add --model, a folder or hub id of the model that is about to be trained.")
    names = (
        "prompt_column",
        "completion_column",
        "category_field",
        "limit",
        "chat_template",
        "overlong",
        "shard_bytes",
    )
    engine = ("num_actors", "gpus_per_actor", "tensor_parallel_size", "max_num_batched_tokens")
    model = ("revision", "tokenizer", "dtype", "max_model_len", "trust_remote_code")
    body = {
        "input": {
            "paths": flags["data"],
            "format": flags["record_format"].value,
            "take": parse_take(flags["take"]),
            **{name: flags[name] for name in names},
        },
        "model": {"name": flags["model"], **{name: flags[name] for name in model}},
        "engine": {
            "name": flags["engine"],
            "enable_prefix_caching": flags["prefix_caching"],
            **{name: flags[name] for name in engine},
        },
        "prune": method,
        "output": {"path": flags["output"]},
        "limits": {name: flags[name] for name in ("max_rejected_ratio", "max_shard_attempts", "max_failed_shards")},
    }
    return parse_spec(body, where="flags")
