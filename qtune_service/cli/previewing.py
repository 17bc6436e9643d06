"""`qtune preview`: the first samples as the model will see them, before a job is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
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
    TakeOpt,
    TemplateOpt,
    TokenizerOpt,
    TrustOpt,
    parse_take,
)
from qtune_service.config import JobSpec, load_spec, parse_spec
from qtune_service.errors import DataError, QTuneError, SpecError

if TYPE_CHECKING:
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
        for part in _page(found, signs=not console.is_terminal or console.no_color):
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
    from qtune_service.pipeline.preview import preview as first_samples
    from qtune_service.torchless import import_transformers_without_torch

    with quiet():
        if not spec.model.trust_remote_code:
            import_transformers_without_torch()
        return first_samples(spec, count)


# --- in the terminal


def _page(found: Preview, *, signs: bool) -> Iterator[RenderableType]:
    from qtune_service.report.data import ExampleToken
    from qtune_service.report.terminal_tokens import Cut, token_text

    for sample in found.samples:
        yield _head(sample)
        states = ("kept" if trained else "prompt" for trained in sample.loss_mask)
        tokens = [ExampleToken(text, state) for text, state in zip(sample.tokens, states, strict=True)]  # type: ignore[arg-type]
        yield token_text(tokens, signs=signs, cut=Cut())
        yield Text()
    for record in found.rejected:
        yield _refusal(record)
    legend = [ExampleToken("not trained on", "prompt"), ExampleToken("trained on", "kept")]
    yield token_text(legend[:1], signs=signs, cut=Cut()).append_text(token_text(legend[1:], signs=signs, cut=Cut()))
    yield Text(f"{found.template}", style="dim")
    for warning in found.warnings:
        yield Text("! ", style="yellow").append(warning, "not bold")


def _head(sample: PreviewSample) -> Text:
    from qtune_service.report.tokens import visible_text

    left_out = f", {sample.num_left_out:,} of its middle not shown" if sample.num_left_out else ""
    cut = ", cut to the model's length" if sample.truncated else ""
    facts = f"{sample.num_tokens:,} tokens, {sample.num_trained:,} trained on{left_out}{cut}"
    place = visible_text(f"{sample.source}:{sample.line}")
    return Text(f"{sample.id}  ", style="bold").append(f"{facts}  ", "not bold").append(place, "not bold dim")


def _refusal(record: PreviewRejected) -> Text:
    from qtune_service.report.tokens import visible_text

    head = Text(f"{record.id}  ", style="bold").append(f"rejected: {record.reason}  ", "yellow not bold")
    return head.append(visible_text(f"{record.detail}. {record.hint}"), "not bold")
