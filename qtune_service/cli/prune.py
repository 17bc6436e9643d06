"""Commands that run jobs: `qtune prune`, `score` and `run`. They build a JobSpec, run it, and say what happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from qtune_service.cli.console import exit_codes, quiet, show
from qtune_service.cli.flags import (
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
    OrderOpt,
    OutputOpt,
    Overlong,
    OverlongOpt,
    OverwriteOpt,
    PrefixOpt,
    PromptOpt,
    RayOpt,
    RejectedOpt,
    RevisionOpt,
    RuleOpt,
    SampleRatioOpt,
    SeedOpt,
    ShardOpt,
    StrategyOpt,
    TakeOpt,
    TemplateOpt,
    TensorOpt,
    TokenizerOpt,
    TokenRatioOpt,
    TokenStrategyOpt,
    TrustOpt,
    build_spec,
)
from qtune_service.config import JobSpec, load_spec, parse_spec
from qtune_service.errors import SpecError


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
    strategy: StrategyOpt = "q_tuning",
    strategy_order: OrderOpt = "highest",
    token_strategy: TokenStrategyOpt = "neighbor",
    seed: SeedOpt = 0,
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
        "strategy": strategy,
        "strategy_order": strategy_order,
        "token_strategy": token_strategy,
        "seed": seed,
        "quadrant_rule": quadrant_rule,
    }
    with exit_codes():
        if from_scores is not None:
            if data or model:
                raise SpecError(
                    "--from-scores takes its data and model from the earlier output", "Leave DATA and --model out."
                )
            spec = _spec_from_scores(from_scores, output, method)
        else:
            spec = build_spec(locals(), method)
        _run(spec, ray_address, overwrite=overwrite)


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
    with exit_codes():
        _run(build_spec(locals(), None), ray_address, overwrite=overwrite)


def run(
    spec: Annotated[str, typer.Argument(help="A job file: .toml or .json; or env:NAME, a variable that holds JSON.")],
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Run a job file. The same command continues a stopped job."""
    with exit_codes():
        _run(_spec_at(spec), ray_address, overwrite=overwrite)


def _spec_at(place: str) -> JobSpec:
    """Of a job file, or as the service hands it over."""
    if not place.startswith("env:"):
        return load_spec(Path(place))
    from qtune_service.config import unpack_spec

    name = place.removeprefix("env:")
    if (text := os.environ.get(name)) is None:
        raise SpecError(f"there is no environment variable {name!r}", "env:NAME is a variable that holds a job spec.")
    return unpack_spec(text, place)


def _spec_from_scores(origin: str, output: str, method: dict[str, Any]) -> JobSpec:
    """The spec of the earlier output, with this command's method and place."""
    from qtune_service.output.layout import Output

    earlier = Output(origin).require_manifest()["spec"]
    return parse_spec({**earlier, "prune": method, "output": {"path": output}, "from_scores": origin}, where="flags")


def _run(spec: JobSpec, ray_address: str | None, *, overwrite: bool) -> None:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline.progress import PlainSink, TerminalSink
    from qtune_service.pipeline.ray_executor import RayExecutor
    from qtune_service.pipeline.run import run_job
    from qtune_service.pipeline.shutdown import Stop

    stop = Stop()
    stop.install()
    if not spec.model.trust_remote_code:  # a tokenizer with code of its own may want torch
        import_transformers_without_torch()
    with quiet() as console:
        sink = TerminalSink(console) if console.is_terminal else PlainSink(console)
        try:
            manifest = run_job(spec, sink, executor=RayExecutor(ray_address), overwrite=overwrite, stop=stop)
        finally:
            sink.close()
    show(manifest, spec.output.path)
