"""The `qtune` command. It builds a JobSpec, runs it, and says what happened.

Exit codes: 0 done, 2 usage (wrong flags, spec or output), 3 data, 4 runtime, 130 stopped by Ctrl-C, 143 by SIGTERM.
Heavy libraries are imported by the commands that need them, so that `qtune --help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from qtune_service import __version__
from qtune_service.config import JobSpec, load_spec, parse_spec
from qtune_service.errors import QTuneError, SpecError

app = typer.Typer(
    name="qtune",
    help="Prune fine-tuning data with Q-Tuning: exact perplexity and entropy by vLLM, under Ray Data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED, TERMINATED = 130, 143


class Format(StrEnum):
    """Record formats."""

    auto = "auto"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"
    tokenized = "tokenized"


class Engine(StrEnum):
    """Scoring engines."""

    auto = "auto"
    vllm = "vllm"
    reference = "reference"


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
EngineOpt = Annotated[Engine, typer.Option("--engine", help="auto prefers vllm.", rich_help_panel=ENGINE)]
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
ReverseOpt = Annotated[
    bool, typer.Option("--reverse-token-order", help="Ablation: keep the worst tokens.", rich_help_panel=METHOD)
]
RuleOpt = Annotated[
    str | None,
    typer.Option("--quadrant-rule", metavar="MODULE:FUNCTION", help="Your own labels.", rich_help_panel=METHOD),
]
RejectedOpt = Annotated[
    float, typer.Option("--max-rejected-ratio", help="Fail if more records were rejected.", rich_help_panel=RUN)
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


@app.command()
def prune(
    output: OutputOpt,
    data: DataArg = None,
    model: ModelOpt = None,
    from_scores: FromScoresOpt = None,
    record_format: FormatOpt = Format.auto,
    prompt_column: PromptOpt = None,
    completion_column: CompletionOpt = None,
    category_field: CategoryOpt = None,
    take: TakeOpt = None,
    limit: LimitOpt = None,
    chat_template: TemplateOpt = None,
    overlong: OverlongOpt = Overlong.reject,
    revision: RevisionOpt = None,
    tokenizer: TokenizerOpt = None,
    dtype: DtypeOpt = Dtype.auto,
    max_model_len: MaxLenOpt = None,
    trust_remote_code: TrustOpt = False,
    engine: EngineOpt = Engine.auto,
    num_actors: ActorsOpt = None,
    gpus_per_actor: GpusOpt = None,
    tensor_parallel_size: TensorOpt = 1,
    max_num_batched_tokens: BatchOpt = None,
    prefix_caching: PrefixOpt = True,
    sample_keep_ratio: SampleRatioOpt = 0.5,
    token_keep_ratio: TokenRatioOpt = 0.7,
    neighbor_lambda: LambdaOpt = 0.5,
    bisect_max_iter: BisectOpt = None,
    min_tokens_to_prune: MinTokensOpt = 1,
    reverse_token_order: ReverseOpt = False,
    quadrant_rule: RuleOpt = None,
    max_rejected_ratio: RejectedOpt = 0.5,
    shard_bytes: ShardOpt = None,
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Score a dataset, find the thresholds, and write the pruned one."""
    method = {
        "sample_keep_ratio": sample_keep_ratio,
        "token_keep_ratio": token_keep_ratio,
        "neighbor_lambda": neighbor_lambda,
        "bisect_max_iter": bisect_max_iter,
        "min_tokens_to_prune": min_tokens_to_prune,
        "reverse_token_order": reverse_token_order,
        "quadrant_rule": quadrant_rule,
    }
    with _exit_codes():
        if from_scores is not None:
            if data or model:
                raise SpecError(
                    "--from-scores takes its data and model from the earlier output", "Leave DATA and --model out."
                )
            spec = _spec_from_scores(from_scores, output, method)
        else:
            spec = _build_spec(locals(), method)
        _run(spec, ray_address, overwrite=overwrite)


@app.command()
def score(
    data: DataArg,
    output: OutputOpt,
    model: ModelOpt,
    record_format: FormatOpt = Format.auto,
    prompt_column: PromptOpt = None,
    completion_column: CompletionOpt = None,
    category_field: CategoryOpt = None,
    take: TakeOpt = None,
    limit: LimitOpt = None,
    chat_template: TemplateOpt = None,
    overlong: OverlongOpt = Overlong.reject,
    revision: RevisionOpt = None,
    tokenizer: TokenizerOpt = None,
    dtype: DtypeOpt = Dtype.auto,
    max_model_len: MaxLenOpt = None,
    trust_remote_code: TrustOpt = False,
    engine: EngineOpt = Engine.auto,
    num_actors: ActorsOpt = None,
    gpus_per_actor: GpusOpt = None,
    tensor_parallel_size: TensorOpt = 1,
    max_num_batched_tokens: BatchOpt = None,
    prefix_caching: PrefixOpt = True,
    max_rejected_ratio: RejectedOpt = 0.5,
    shard_bytes: ShardOpt = None,
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Only score; prune later, as often as you like, with `qtune prune --from-scores`."""
    with _exit_codes():
        _run(_build_spec(locals(), None), ray_address, overwrite=overwrite)


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="A job file: .toml or .json.")],
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Run a job file. The same command continues a stopped job."""
    with _exit_codes():
        _run(load_spec(spec), ray_address, overwrite=overwrite)


@app.command()
def inspect(
    output: Annotated[str, typer.Argument(help="A finished output.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Show what a job found and kept."""
    with _exit_codes():
        from qtune_service.pipeline.output import Output

        manifest = Output(output).require_manifest()
        if as_json:
            typer.echo(json.dumps(manifest, indent=1))
        else:
            _show(manifest, output)


@app.command()
def doctor() -> None:
    """Say what this machine can do, and what to fix."""
    with _exit_codes():
        from qtune_service.doctor import examine

        console = Console()
        with _quiet() as _:
            findings, healthy = examine()
        console.print(findings)
        if not healthy:
            raise typer.Exit(4)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"qtune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _build_spec(flags: dict[str, Any], method: dict[str, Any] | None) -> JobSpec:
    """A JobSpec of a command's flags."""
    if not flags["data"]:
        raise SpecError("no data given", "qtune prune DATA... --model M --output OUT")
    if flags["model"] is None:
        raise SpecError("no model given", "Add --model, a folder or hub id of the model that is about to be trained.")
    take = [entry.rpartition("=") for entry in flags["take"] or ()]
    if any(not category or not count.isdigit() for category, _, count in take):
        raise SpecError(f"--take wants CATEGORY=N, got {' '.join(flags['take'])!r}", "For example --take math=100.")
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
            "take": {category: int(count) for category, _, count in take},
            **{name: flags[name] for name in names},
        },
        "model": {"name": flags["model"], **{name: flags[name] for name in model}},
        "engine": {
            "name": flags["engine"].value,
            "enable_prefix_caching": flags["prefix_caching"],
            **{name: flags[name] for name in engine},
        },
        "prune": method,
        "output": {"path": flags["output"]},
        "limits": {"max_rejected_ratio": flags["max_rejected_ratio"]},
    }
    return parse_spec(body, where="flags")


def _spec_from_scores(origin: str, output: str, method: dict[str, Any]) -> JobSpec:
    """The spec of the earlier output, with this command's method and place."""
    from qtune_service.pipeline.output import Output

    earlier = Output(origin).require_manifest()["spec"]
    return parse_spec({**earlier, "prune": method, "output": {"path": output}, "from_scores": origin}, where="flags")


def _run(spec: JobSpec, ray_address: str | None, *, overwrite: bool) -> None:
    from qtune_service.pipeline.progress import PlainSink, TerminalSink
    from qtune_service.pipeline.run import run_job

    signal.signal(signal.SIGTERM, _terminated)
    with _quiet() as console:
        sink = TerminalSink(console) if console.is_terminal else PlainSink(console)
        try:
            manifest = run_job(spec, sink, ray_address=ray_address, overwrite=overwrite)
        finally:
            sink.close()
    _show(manifest, spec.output.path)


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _show(manifest: dict[str, Any], output: str) -> None:
    from qtune_service.report.terminal import describe_job

    console = Console()
    console.print(describe_job(manifest))
    console.print(f"[bold]output[/]  {output}", highlight=False, soft_wrap=True)
    if manifest.get("thresholds"):
        console.print(f"[bold]report[/]  {output.rstrip('/')}/report.html", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _quiet() -> Iterator[Console]:
    """Libraries write to a log file; set QTUNE_LOG to choose it."""
    from qtune_service.logs import quiet_libraries

    log = Path(os.environ.get("QTUNE_LOG") or Path(tempfile.gettempdir()) / f"qtune-{os.getpid()}.log")
    with quiet_libraries(log) as console:
        yield console


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn errors into one message and an exit code."""
    console = Console(stderr=True)
    try:
        yield
    except QTuneError as error:
        console.print(f"[bold red]error:[/] {_plain(error.message)}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(_plain(error.hint), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        console.print("stopped. Finished shards are safe: run the same command again to continue.", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except SystemExit as leaving:
        if leaving.code == TERMINATED:
            console.print(
                "terminated. Finished shards are safe: run the same command again to continue.", soft_wrap=True
            )
        raise


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="qtune")


if __name__ == "__main__":
    main()
