"""`qtune estimate`: estimate the cost of a job from data and a model, or from numbers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qtune_service.cli.commands import command
from qtune_service.cli.console import exit_codes, quiet
from qtune_service.cli.job_flags import Given, spec_of, takes_job_fields
from qtune_service.config import FlagGroup, JobSpec, PruneSpec
from qtune_service.errors import SpecError
from qtune_service.spec_files import load_spec

if TYPE_CHECKING:
    from qtune_service.pipeline.cost import ModelCost
    from qtune_service.pipeline.estimate import Estimate, Hardware, Range, Size

GPU_NAMES = "a100, b200, h100, h200, l4 or l40s"


WITHOUT_DATA, HARDWARE, FORM = "Instead of data", "Hardware and price", "Output"
RATIO = "prune.sample_keep_ratio"
FIELDS = [
    *("input.paths", "model.name", RATIO, "input.format"),
    *("input.prompt_column", "input.completion_column", "input.messages_column"),
    *("input.column_map", "input.role_map", "input.config", "input.split"),
]
DATA_OR_JOB = "Files, glob patterns or folders; or a job file alone, without --model."
EXAMPLES = """\
qtune estimate chats.jsonl --model org/base --gpu h100 --gpus 8
qtune estimate job.toml --price 2.5
qtune estimate --params 7e9 --samples 1000000 --tokens 800"""
app = typer.Typer()


@command(app, usage="--model MODEL [OPTIONS]", examples=EXAMPLES)
@takes_job_fields(FIELDS, helps={"input.paths": DATA_OR_JOB})
def estimate(
    given: Given,
    params: Annotated[
        float | None,
        typer.Option(
            "--params",
            metavar="N",
            min=1,
            help="Active weights per token, such as 7e9. By default the model's.",
            rich_help_panel=WITHOUT_DATA,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help="Number of samples. By default from the data.",
            rich_help_panel=WITHOUT_DATA,
        ),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(
            "--tokens", metavar="N", min=1, help="Tokens per sample, without DATA.", rich_help_panel=WITHOUT_DATA
        ),
    ] = None,
    trained_share: Annotated[
        float,
        typer.Option(
            "--trained-share",
            metavar="SHARE",
            min=0,
            max=1,
            help="Share of the tokens that is trained on, without DATA.",
            rich_help_panel=WITHOUT_DATA,
        ),
    ] = 0.6,
    look_at: Annotated[
        int,
        typer.Option(
            "--look-at",
            metavar="N",
            min=2,
            max=10_000,
            help="Records of DATA to read.",
            rich_help_panel=FlagGroup.read.value,
        ),
    ] = 500,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="GPU",
            help=f"{GPU_NAMES}: peak and memory of its data sheet.",
            rich_help_panel=HARDWARE,
        ),
    ] = "h100",
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", min=1, help="Number of GPUs.", rich_help_panel=HARDWARE)
    ] = 1,
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            "--peak-tflops",
            metavar="N",
            min=1e-6,
            help="Peak of a GPU that is not listed, or as measured.",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-gib",
            metavar="GIB",
            min=0.01,
            help="Memory of a GPU that is not listed.",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            metavar="SHARE",
            min=0.001,
            max=1,
            help="Share of the peak that is reached, as measured.",
            rich_help_panel=HARDWARE,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="PRICE", min=0, help="Price of a GPU for an hour.", rich_help_panel=HARDWARE),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object, in bytes, hours and operations.", rich_help_panel=FORM),
    ] = False,
) -> None:
    """Estimate time, cost, disk and memory of a job. Nothing is scored and no weights are read."""
    with exit_codes(), quiet():
        found = _estimate(given, locals())
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console()
    console.print(_page(found))
    for warning in found.warnings:
        console.print(Text("! ", style="yellow").append(warning, "not bold"), soft_wrap=True)


def _estimate(given: Given, flags: dict[str, Any]) -> Estimate:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline import cost as model_cost
    from qtune_service.pipeline.cost import ModelCost
    from qtune_service.pipeline.estimate import estimate as estimated

    spec = _spec(given)
    if spec is not None:
        import_transformers_without_torch()
    size = _size(spec, given, flags)
    cost: ModelCost
    if flags["params"] is not None:
        cost = ModelCost(body=flags["params"], held=flags["params"])
    elif spec is not None:
        cost = model_cost.cost_of(spec.model)
    else:
        raise SpecError("no model given", "Add --model, a folder or hub id, or --params, as 7e9.")
    prune = None if spec is None else spec.prune
    ratio = prune.sample_keep_ratio if prune is not None else given.get(RATIO, PruneSpec().sample_keep_ratio)
    weight_bytes = 2 if spec is None else model_cost.bytes_of_dtype(spec.model)
    return estimated(size, cost, _hardware(flags), keep_ratio=ratio, dtype_bytes=weight_bytes)


def _spec(given: Given) -> JobSpec | None:
    """Return the spec of a job file or of flags, as far as it is known. None without a model."""
    data = given.get("input.paths", [])
    if "model.name" in given:
        return spec_of({"input.paths": ["unused"], **given}, output={"path": "unused"})
    if len(data) == 1 and data[0].endswith((".toml", ".json")):
        return load_spec(Path(data[0]))
    if data:
        raise SpecError("no model given", "A model's tokenizer encodes DATA: add --model, or name a job file.")
    return None


def _size(spec: JobSpec | None, given: Given, flags: dict[str, Any]) -> Size:
    from qtune_service.pipeline.cost import Lengths
    from qtune_service.pipeline.estimate import Size, size_of

    if "input.paths" in given and spec is not None:
        return size_of(spec, flags["look_at"], flags["samples"])
    if flags["samples"] is None or flags["tokens"] is None:
        raise SpecError("neither data nor numbers given", "Name DATA, or give --samples and --tokens.")
    tokens = round(flags["tokens"])
    return Size(flags["samples"], is_exact=True, lengths=Lengths([tokens], [round(tokens * flags["trained_share"])]))


def _hardware(flags: dict[str, Any]) -> Hardware:
    from qtune_service.pipeline.estimate import DEVICES, Device, Hardware

    if (known := DEVICES.get(flags["gpu"].lower())) is None:
        raise SpecError(f"--gpu {flags['gpu']!r} is not listed", f"Use {GPU_NAMES}, or --peak-tflops.")
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
    """Return a number with two significant digits."""
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
