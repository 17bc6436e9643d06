"""The `qtune` command. It builds a JobSpec, runs it, and says what happened.

Exit codes: 0 done, 2 usage (wrong flags, spec or output), 3 data, 4 runtime, 130 stopped by Ctrl-C, 143 by SIGTERM.
Heavy libraries are imported by the commands that need them, so that `qtune --help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qtune_service import __version__
from qtune_service.config import JobSpec, load_spec, parse_spec
from qtune_service.errors import QTuneError, SpecError
from qtune_service.flags import (
    ActorsOpt,
    AttemptsOpt,
    BatchOpt,
    BisectOpt,
    CategoryOpt,
    CompletionOpt,
    DataArg,
    Dtype,
    DtypeOpt,
    EngineOpt,
    FailedOpt,
    Format,
    FormatOpt,
    FromScoresOpt,
    GpusOpt,
    LambdaOpt,
    LimitOpt,
    MaxLenOpt,
    MinTokensOpt,
    ModelOpt,
    OutputOpt,
    Overlong,
    OverlongOpt,
    OverwriteOpt,
    PrefixOpt,
    PromptOpt,
    RayOpt,
    RejectedOpt,
    ReverseOpt,
    RevisionOpt,
    RuleOpt,
    SampleRatioOpt,
    ShardOpt,
    TakeOpt,
    TemplateOpt,
    TensorOpt,
    TokenizerOpt,
    TokenRatioOpt,
    TrustOpt,
    build_spec,
)

app = typer.Typer(
    name="qtune",
    help="Prune fine-tuning data with Q-Tuning: exact perplexity and entropy by vLLM, under Ray Data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED, TERMINATED = 130, 143


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
    engine: EngineOpt = "auto",
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
    max_shard_attempts: AttemptsOpt = 3,
    max_failed_shards: FailedOpt = 0,
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
            spec = build_spec(locals(), method)
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
    engine: EngineOpt = "auto",
    num_actors: ActorsOpt = None,
    gpus_per_actor: GpusOpt = None,
    tensor_parallel_size: TensorOpt = 1,
    max_num_batched_tokens: BatchOpt = None,
    prefix_caching: PrefixOpt = True,
    max_rejected_ratio: RejectedOpt = 0.5,
    max_shard_attempts: AttemptsOpt = 3,
    max_failed_shards: FailedOpt = 0,
    shard_bytes: ShardOpt = None,
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Only score; prune later, as often as you like, with `qtune prune --from-scores`."""
    with _exit_codes():
        _run(build_spec(locals(), None), ray_address, overwrite=overwrite)


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


def _spec_from_scores(origin: str, output: str, method: dict[str, Any]) -> JobSpec:
    """The spec of the earlier output, with this command's method and place."""
    from qtune_service.pipeline.output import Output

    earlier = Output(origin).require_manifest()["spec"]
    return parse_spec({**earlier, "prune": method, "output": {"path": output}, "from_scores": origin}, where="flags")


def _run(spec: JobSpec, ray_address: str | None, *, overwrite: bool) -> None:
    from qtune_service.pipeline.progress import PlainSink, TerminalSink
    from qtune_service.pipeline.run import run_job
    from qtune_service.pipeline.stopping import Stop
    from qtune_service.torchless import import_transformers_without_torch

    stop = Stop()
    stop.install()
    if not spec.model.trust_remote_code:  # a tokenizer with code of its own may want torch
        import_transformers_without_torch()
    with _quiet() as console:
        sink = TerminalSink(console) if console.is_terminal else PlainSink(console)
        try:
            manifest = run_job(spec, sink, ray_address=ray_address, overwrite=overwrite, stop=stop)
        finally:
            sink.close()
    _show(manifest, spec.output.path)


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
        _leave_at_once_if_lost(error.exit_code)
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


def _leave_at_once_if_lost(exit_code: int) -> None:
    """Ray's own leave-taking waits for a head node that is gone."""
    cluster = sys.modules.get("qtune_service.pipeline.cluster")
    if cluster is not None and cluster.is_lost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="qtune")


if __name__ == "__main__":
    main()
