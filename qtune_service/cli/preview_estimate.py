"""`qtune estimate`: what a job will cost, before it is run. From data and a model, or from numbers alone.

`qtune preview`: the first samples as the model will see them, before a job is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from qtune_service.cli.console import exit_codes, quiet
from qtune_service.cli.flags import (
    CategoryOpt,
    CompletionOpt,
    Format,
    FormatOpt,
    MaxLenOpt,
    ModelOpt,
    Overlong,
    OverlongOpt,
    PromptOpt,
    RevisionOpt,
    SampleRatioOpt,
    TakeOpt,
    TemplateOpt,
    TokenizerOpt,
    TrustOpt,
    parse_take,
)
from qtune_service.config import JobSpec, load_spec, parse_spec
from qtune_service.errors import DataError, QTuneError, SpecError

if TYPE_CHECKING:
    from qtune_service.pipeline.cost import ModelCost
    from qtune_service.pipeline.estimate import Estimate, Hardware, Range, Size
    from qtune_service.pipeline.preview import Preview, PreviewRejected, PreviewSample


def preview(
    data: Annotated[list[str], typer.Argument(help="Files, globs or folders; without --model, a job file.")],
    model: ModelOpt = None,
    record_format: FormatOpt = Format.auto,
    prompt_column: PromptOpt = None,
    completion_column: CompletionOpt = None,
    category_field: CategoryOpt = None,
    take: TakeOpt = None,
    chat_template: TemplateOpt = None,
    overlong: OverlongOpt = Overlong.reject,
    revision: RevisionOpt = None,
    tokenizer: TokenizerOpt = None,
    max_model_len: MaxLenOpt = None,
    trust_remote_code: TrustOpt = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=50, help="How many samples.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, errors included.")] = False,
) -> None:
    """Show the first samples as the model will see them: text, tokens, and which of these are trained on."""
    with exit_codes():
        try:
            spec = _job(data[0]) if model is None and len(data) == 1 else _flags(locals())
            found = _look(spec, limit)
        except (QTuneError, MemoryError) as caught:
            error = caught if isinstance(caught, QTuneError) else _no_memory()
            if as_json:
                typer.echo(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
            raise error from caught
        if as_json:
            typer.echo(json.dumps(asdict(found)))
            return
        console = Console()
        for part in _preview_page(found, signs=not console.is_terminal or console.no_color):
            console.print(part, highlight=False, soft_wrap=True)


def _no_memory() -> QTuneError:
    return DataError(
        "the preview needs more memory than there is",
        "Are the first records very long, or does the chat template repeat them?",
    )


def _job(path: str) -> JobSpec:
    """A job file's spec."""
    if not path.endswith((".toml", ".json")) and path != "/dev/stdin":
        raise SpecError("no model given", "Add --model, a folder or hub id; or name a job file, .toml or .json.")
    return load_spec(Path(path))


def _flags(flags: dict[str, Any]) -> JobSpec:
    if flags["model"] is None:
        raise SpecError("no model given", "Add --model, a folder or hub id of the model that is about to be trained.")
    columns = ("prompt_column", "completion_column", "category_field", "chat_template", "overlong")
    model = ("revision", "tokenizer", "max_model_len", "trust_remote_code")
    body = {
        "input": {
            "paths": flags["data"],
            "format": flags["record_format"].value,
            "take": parse_take(flags["take"]),
            **{name: flags[name] for name in columns},
        },
        "model": {"name": flags["model"], **{name: flags[name] for name in model}},
        "output": {"path": "nowhere"},
    }
    return parse_spec(body, where="flags")


def _look(spec: JobSpec, count: int) -> Preview:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline.preview import preview as first_samples

    with quiet():
        if not spec.model.trust_remote_code:
            import_transformers_without_torch()
        return first_samples(spec, count)


# --- in the terminal


def _preview_page(found: Preview, *, signs: bool) -> Iterator[RenderableType]:
    from qtune_service.report.data import TokenView
    from qtune_service.report.terminal_samples import Cut, token_text

    for sample in found.samples:
        yield _head(sample)
        states = ("kept" if trained else "prompt" for trained in sample.loss_mask)
        tokens = [TokenView(text, state) for text, state in zip(sample.tokens, states, strict=True)]  # type: ignore[arg-type]
        yield token_text(tokens, signs=signs, cut=Cut())
        yield Text()
    for record in found.rejected:
        yield _refusal(record)
    legend = [TokenView("not trained on", "prompt"), TokenView("trained on", "kept")]
    yield token_text(legend[:1], signs=signs, cut=Cut()).append_text(token_text(legend[1:], signs=signs, cut=Cut()))
    yield Text(f"{found.template}", style="dim")
    for warning in found.warnings:
        yield Text("! ", style="yellow").append(warning, "not bold")


def _head(sample: PreviewSample) -> Text:
    from qtune_service.report.token_view import visible_text

    left_out = f", {sample.num_left_out:,} of its middle not shown" if sample.num_left_out else ""
    cut = ", cut to the model's length" if sample.truncated else ""
    facts = f"{sample.num_tokens:,} tokens, {sample.num_trained:,} trained on{left_out}{cut}"
    place = visible_text(f"{sample.source}:{sample.line}")
    return Text(f"{sample.id}  ", style="bold").append(f"{facts}  ", "not bold").append(place, "not bold dim")


def _refusal(record: PreviewRejected) -> Text:
    from qtune_service.report.token_view import visible_text

    head = Text(f"{record.id}  ", style="bold").append(f"rejected: {record.reason}  ", "yellow not bold")
    return head.append(visible_text(f"{record.detail}. {record.hint}"), "not bold")


GPU_NAMES = "a100, b200, h100, h200, l4 or l40s"


def estimate(
    data: Annotated[list[str] | None, typer.Argument(help="Files, globs or folders; or a job file alone.")] = None,
    model: ModelOpt = None,
    record_format: FormatOpt = Format.auto,
    prompt_column: PromptOpt = None,
    completion_column: CompletionOpt = None,
    params: Annotated[
        float | None, typer.Option("--params", min=1, help="Weights that a token meets, as 7e9; else the model's.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="How many; else told by the data.")] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", min=1, help="Tokens of a sample, without DATA.")] = None,
    trained_share: Annotated[
        float, typer.Option("--trained-share", min=0, max=1, help="Of these trained on, without DATA.")
    ] = 0.6,
    sample_keep_ratio: SampleRatioOpt = 0.5,
    look_at: Annotated[int, typer.Option("--look-at", min=2, max=10_000, help="Records of DATA that are read.")] = 500,
    gpu: Annotated[str, typer.Option("--gpu", help=f"{GPU_NAMES}: peak and memory of its data sheet.")] = "h100",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many.")] = 1,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", min=1e-6, help="Of a device that is not listed, or as measured.")
    ] = None,
    gpu_memory_gib: Annotated[float | None, typer.Option("--gpu-memory-gib", min=0.01, help="The same.")] = None,
    share: Annotated[
        float | None, typer.Option("--share", min=0.001, max=1, help="Of the peak that is reached, as measured.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", min=0, help="Of a GPU for an hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, in bytes, hours and operations.")] = False,
) -> None:
    """Estimate time, cost, disk and memory of a job. Nothing is scored and no weights are read."""
    with exit_codes(), quiet():
        found = _estimate(locals())
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console()
    console.print(_page(found))
    for warning in found.warnings:
        console.print(Text("! ", style="yellow").append(warning, "not bold"), soft_wrap=True)


def _estimate(flags: dict[str, Any]) -> Estimate:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline import cost as model_cost
    from qtune_service.pipeline.cost import ModelCost
    from qtune_service.pipeline.estimate import estimate as estimated

    spec = _spec(flags)
    if spec is not None:
        import_transformers_without_torch()
    size = _size(spec, flags)
    cost: ModelCost
    if flags["params"] is not None:
        cost = ModelCost(body=flags["params"], held=flags["params"])
    elif spec is not None:
        cost = model_cost.cost_of(spec.model)
    else:
        raise SpecError("no model given", "Add --model, a folder or hub id, or --params, as 7e9.")
    ratio = spec.prune.sample_keep_ratio if spec is not None and spec.prune is not None else flags["sample_keep_ratio"]
    weight_bytes = 2 if spec is None else model_cost.bytes_of_dtype(spec.model)
    return estimated(size, cost, _hardware(flags), keep_ratio=ratio, dtype_bytes=weight_bytes)


def _spec(flags: dict[str, Any]) -> JobSpec | None:
    """What is known of the job: of a job file, or of flags; None without a model."""
    data, model = flags["data"] or [], flags["model"]
    if model is None and len(data) == 1 and data[0].endswith((".toml", ".json")):
        return load_spec(Path(data[0]))
    if model is None:
        if data:
            raise SpecError(
                "no model given", "DATA is encoded by a model's tokenizer: add --model, or name a job file."
            )
        return None
    body = {
        "input": {
            "paths": data or ["nothing"],
            "format": flags["record_format"].value,
            "prompt_column": flags["prompt_column"],
            "completion_column": flags["completion_column"],
        },
        "model": {"name": model},
        "prune": {"sample_keep_ratio": flags["sample_keep_ratio"]},
        "output": {"path": "nowhere"},
    }
    return parse_spec(body, where="flags")


def _size(spec: JobSpec | None, flags: dict[str, Any]) -> Size:
    from qtune_service.pipeline.cost import Lengths
    from qtune_service.pipeline.estimate import Size, size_of

    if flags["data"] and spec is not None:
        return size_of(spec, flags["look_at"], flags["samples"])
    if flags["samples"] is None or flags["tokens"] is None:
        raise SpecError("neither data nor numbers given", "Name DATA, or give --samples and --tokens.")
    tokens = round(flags["tokens"])
    return Size(flags["samples"], is_exact=True, lengths=Lengths([tokens], [round(tokens * flags["trained_share"])]))


def _hardware(flags: dict[str, Any]) -> Hardware:
    from qtune_service.pipeline.estimate import DEVICES, Device, Hardware

    if (known := DEVICES.get(flags["gpu"].lower())) is None:
        raise SpecError(f"--gpu {flags['gpu']!r} is none that is listed", f"Use {GPU_NAMES}, or --peak-tflops.")
    device = Device(flags["peak_tflops"] or known.peak_tflops, flags["gpu_memory_gib"] or known.memory_gib)
    return Hardware(device, flags["gpus"], flags["share"], flags["price"])


# --- in the terminal


def _page(found: Estimate) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(found):
        table.add_row(*row)
    return table


def _rows(found: Estimate) -> Iterator[tuple[str, str, str]]:
    about = "" if found.samples_are_counted else "about "
    yield "samples", f"{about}{found.samples:,}", f"{found.looked_at:,} looked at"
    yield "tokens", _short(found.tokens), f"{found.trained_tokens / found.tokens:.0%} trained on"
    yield "operations", f"{found.flops:.2g}", f"{found.flops / found.tokens:.2g} a token"
    yield "GPU hours", _figure(found.gpu_hours.likely), _between(found.gpu_hours)
    gpus = f"{found.gpus} GPU{'s' if found.gpus > 1 else ''}"
    between = f"{_time(found.hours.low)} to {_time(found.hours.high)}"
    yield f"time on {gpus}", _time(found.hours.likely), f"{between}, without start-up"
    if found.cost is not None:
        yield "cost", _figure(found.cost.likely), _between(found.cost)
    yield "weights", _bytes(found.weight_bytes), f"{found.gpus_per_model} GPU{'s' * (found.gpus_per_model > 1)} a model"
    yield "scores/", _bytes(found.needs.scores_bytes), ""
    yield "pruned/, quadrants/", _bytes(found.needs.product_bytes), ""
    yield "CPU core hours", _figure(found.needs.cpu_core_hours), "read, encode, write, prune"
    yield "driver's memory", _bytes(found.needs.driver_bytes), "thresholds included"
    if found.needs.threshold_file_bytes:
        yield "files for thresholds", _bytes(found.needs.threshold_file_bytes), "while they are found"


def _between(values: Range) -> str:
    return f"{_figure(values.low)} to {_figure(values.high)}"


def _figure(value: float) -> str:
    """Two digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value >= 0.01 else "under 0.01"


def _time(hours: float) -> str:
    for size, unit in ((1, "h"), (1 / 60, "min")):
        if hours >= size:
            return f"{_figure(hours / size)} {unit}"
    return f"{max(hours * 3600, 1):.0f} s"


def _short(value: float) -> str:
    return _scaled(value, {1e12: " T", 1e9: " G", 1e6: " M"}) or f"{value:,.0f}"


def _bytes(value: float) -> str:
    return _scaled(value, {1e12: " TB", 1e9: " GB", 1e6: " MB", 1e3: " kB"}) or f"{value:.0f} B"


def _scaled(value: float, units: Mapping[float, str]) -> str:
    return next((f"{value / size:.3g}{unit}" for size, unit in units.items() if value >= size), "")
