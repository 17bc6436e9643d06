"""`qtune preview`: show the first samples as the model will see them, before a job is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from qtune_service.cli.commands import command
from qtune_service.cli.console import exit_codes, quiet
from qtune_service.cli.job_flags import Given, spec_of, takes_job_fields
from qtune_service.config import FlagGroup, JobSpec
from qtune_service.errors import DataError, QTuneError, SpecError
from qtune_service.job_fields import in_terminal
from qtune_service.spec_files import load_spec

if TYPE_CHECKING:
    from qtune_service.pipeline.preview import Preview, PreviewRejected, PreviewSample, PreviewSource


app = typer.Typer()
FIELDS = [
    *("input.paths", "model.name", "input.format", "input.prompt_column", "input.completion_column"),
    *("input.messages_column", "input.column_map", "input.role_map", "input.config", "input.split"),
    *("input.category_field", "input.take", "input.chat_template", "input.overlong", "model.max_model_len"),
    *("model.revision", "model.tokenizer", "model.trust_remote_code"),
]
DATA_OR_JOB = "Files, glob patterns or folders; or a job file alone, without --model."
EXAMPLES = """\
qtune preview chats.jsonl --model ./my-model
qtune preview chats.jsonl --model ./my-model --limit 20
qtune preview job.toml --json"""


@command(app, usage="--model MODEL [OPTIONS]", examples=EXAMPLES)
@takes_job_fields(FIELDS, required=["input.paths"], helps={"input.paths": DATA_OR_JOB})
def preview(
    given: Given,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", metavar="N", min=1, max=50, help="Samples to show.", rich_help_panel=FlagGroup.job.value
        ),
    ] = 5,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object, errors included.", rich_help_panel=FlagGroup.job.value),
    ] = False,
) -> None:
    """Show the first samples as the model will see them. Trained tokens are marked."""
    with exit_codes():
        try:
            found = _first_samples(_spec(given), limit)
        except (QTuneError, MemoryError) as caught:
            error = caught if isinstance(caught, QTuneError) else _no_memory()
            if as_json:
                typer.echo(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}))
            raise error from caught
        if as_json:
            typer.echo(json.dumps(asdict(found)))
            return
        console = Console()
        for part in _page(found, signs=not console.is_terminal or console.no_color):
            console.print(part, highlight=False, soft_wrap=True)


def _no_memory() -> QTuneError:
    return DataError(
        "the preview needs more memory than this machine has",
        "Are the first records very long, or does the chat template repeat them?",
    )


def _spec(given: Given) -> JobSpec:
    paths = given["input.paths"]
    if "model.name" in given:
        return spec_of(given, output={"path": "unused"})
    if len(paths) == 1 and (paths[0].endswith((".toml", ".json")) or paths[0] == "/dev/stdin"):
        return load_spec(Path(paths[0]))
    raise SpecError("no model given", "Add --model, a folder or hub id; or name a job file, .toml or .json.")


def _first_samples(spec: JobSpec, count: int) -> Preview:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline.preview import preview as read_samples

    with quiet():
        if not spec.model.trust_remote_code:
            import_transformers_without_torch()
        return read_samples(spec, count)


# --- in the terminal


def _page(found: Preview, *, signs: bool) -> Iterator[RenderableType]:
    from qtune_service.report.data import TokenView
    from qtune_service.report.terminal_samples import Cut, token_text

    for source in found.sources:
        yield _reading(source)
    for sample in found.samples:
        yield _heading(sample)
        states = ("kept" if trained else "prompt" for trained in sample.loss_mask)
        tokens = [TokenView(text, state) for text, state in zip(sample.tokens, states, strict=True)]  # type: ignore[arg-type]
        yield token_text(tokens, signs=signs, cut=Cut())
        yield Text()
    for record in found.rejected:
        yield _rejection(record)
    legend = [TokenView("not trained on", "prompt"), TokenView("trained on", "kept")]
    yield token_text(legend[:1], signs=signs, cut=Cut()).append_text(token_text(legend[1:], signs=signs, cut=Cut()))
    yield Text(f"{found.template}", style="dim")
    for warning in found.warnings:
        yield Text("! ", style="yellow").append(in_terminal(warning, "`{}`"), "not bold")


def _reading(source: PreviewSource) -> Text:
    """Return how a file is read: its format, and its columns by use."""
    from qtune_service.report.token_view import visible_text

    by_use: dict[str, list[str]] = {}
    for column, use in source.columns.items():
        by_use.setdefault(use, []).append(column)
    lines = [f"  {', '.join(columns)}: {use}" for use, columns in by_use.items()]
    head = Text(visible_text(source.source), style="dim").append(f"  {source.format}", "not dim bold")
    return head.append(visible_text("".join(f"\n{line}" for line in lines)), "not dim not bold")


def _heading(sample: PreviewSample) -> Text:
    from qtune_service.report.token_view import visible_text

    left_out = f", {sample.num_left_out:,} of its middle not shown" if sample.num_left_out else ""
    cut = ", cut to the model's length" if sample.truncated else ""
    facts = f"{sample.num_tokens:,} tokens, {sample.num_trained:,} trained on{left_out}{cut}"
    place = visible_text(f"{sample.source}:{sample.line}")
    return Text(f"{sample.id}  ", style="bold").append(f"{facts}  ", "not bold").append(place, "not bold dim")


def _rejection(record: PreviewRejected) -> Text:
    from qtune_service.report.token_view import visible_text

    head = Text(f"{record.id}  ", style="bold").append(f"rejected: {record.reason}  ", "yellow not bold")
    more = f" {record.num_more} more for the same reason." if record.num_more else ""
    return head.append(visible_text(in_terminal(f"{record.detail}. {record.hint}") + more), "not bold")
