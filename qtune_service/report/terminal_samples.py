"""Terminal views of samples, groups and rejected records.

The tokens of a sample are distinguished by colour, or without colour by the signs of `git diff --word-diff`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qtune_service.output.query import Field, Group, Records
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.data import TokenState, TokenView
from qtune_service.report.terminal import BAR_WIDTH, QUADRANTS, bar, draw_plane
from qtune_service.report.text import NOTHING, count, number, percent, shorten
from qtune_service.report.token_view import FIELDS, ShownSample, plain, visible_text
from qtune_service.selection.plane import entry_alpha

STYLES: dict[TokenState, str] = {"prompt": "dim", "kept": "green", "removed": "red strike"}
SIGNS: dict[TokenState, tuple[str, str]] = {"prompt": ("", ""), "kept": ("{+", "+}"), "removed": ("[-", "-]")}
LEGEND: tuple[tuple[TokenState, str], ...] = (("prompt", "prompt"), ("kept", "trained on"), ("removed", "removed"))

INDENT = "  "
SHOWN_ANYWAY = frozenset({*FIELDS, "entropy", "length"})
VALUE_CHARS, CELL_CHARS, NAME_CHARS = 600, 48, 40


@dataclass(frozen=True, slots=True)
class Cut:
    """Limits on the shown part of a sample. None: all."""

    prompt_chars: int | None = None
    """Of each prompt: a quarter from its beginning, the rest from its end."""
    trained_tokens: int | None = None


BRIEF = Cut(prompt_chars=200, trained_tokens=150)


def token_text(tokens: Iterable[TokenView], *, signs: bool, cut: Cut) -> Text:
    """Return the text of a sample, indented. signs: mark tokens by signs and not by colour."""
    text = Text(INDENT)
    for state, run in _runs(tokens, cut):
        before, after = SIGNS[state] if signs else ("", "")
        text.append(f"{before}{run}{after}".replace("\n", f"\n{INDENT}"), "" if signs else STYLES[state])
    text.rstrip()
    return text


def legend(*, signs: bool) -> Text:
    """Return the meaning of the colours or signs."""
    parts = []
    for state, meaning in LEGEND:
        before, after = SIGNS[state] if signs else ("", "")
        parts.append(Text(before + meaning + after, "" if signs else STYLES[state]))
    return Text("  ").join(parts)


def _runs(tokens: Iterable[TokenView], cut: Cut) -> Iterator[tuple[TokenState, str]]:
    """Yield runs of tokens with the same state."""
    left = cut.trained_tokens
    hidden = 0
    for state, group in groupby(tokens, lambda token: token.state):
        if state == "prompt":
            if left != 0:
                yield state, _shortened(visible_text("".join(token.text for token in group)), cut.prompt_chars)
            continue
        run = list(group)
        shown = run[:left]
        hidden += len(run) - len(shown)
        left = None if left is None else left - len(shown)
        if shown:
            yield state, _marked("".join(token.text for token in shown))
    if hidden:
        yield "prompt", f" … {count(hidden)} more trained tokens"


def _marked(text: str) -> str:
    """Mark line ends and tabs with a sign: they are tokens, and may be removed."""
    return visible_text(text).replace("\n", "⏎\n").replace("\t", "⇥\t")


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]} … {text[len(text) - (limit - head) :]}"


def sample_card(sample: ShownSample, *, signs: bool) -> Lines:
    """Return a sample of a list: its scores, its source, and its text, cut."""
    more = [
        f"{_line(name, NAME_CHARS)} {_short(value)}"
        for name, value in sample.named.items()
        if name not in SHOWN_ANYWAY and not isinstance(value, list | dict)
    ]
    head = Text(f"{sample.fields['sample_id']}  ", style="bold").append("  ".join([*_facts(sample), *more]), "not bold")
    source = Text(_source(sample.fields), style="dim")
    return Lines(head, source, token_text(sample.tokens, signs=signs, cut=BRIEF), Text())


def sample_page(sample: ShownSample, finished: FinishedOutput, *, signs: bool) -> Lines:
    """Return all data of one sample."""
    head = Text(f"{sample.fields['sample_id']}  ", style="bold").append("  ".join(_facts(sample)), "not bold")
    return Lines(
        head,
        Text(f"{_source(sample.fields)}\n", style="dim"),
        *_plane(sample, finished),
        _pairs({name: _line(value, VALUE_CHARS) for name, value in sample.own.items()}),
        Text(),
        token_text(sample.tokens, signs=signs, cut=Cut()),
        Text("\n").join([Text(), legend(signs=signs), Text()]),
        *_hardest(sample),
    )


def _facts(sample: ShownSample) -> Iterator[str]:
    """Yield quadrant, decision and scores as text."""
    fields = sample.fields
    if "quadrant" in fields:
        yield f"{fields['quadrant']} {'kept' if fields['kept'] else 'dropped'}"
    yield f"perplexity {number(fields['perplexity'])}"
    yield f"entropy {number(fields['mean_entropy'])}"
    removed = sample.tokens_removed
    cut = f", {count(removed)} removed" if removed and fields.get("kept") else ""
    yield f"{count(fields['num_tokens'])} tokens{cut}"
    if fields["truncated"]:
        yield "truncated"


def _source(fields: Mapping[str, Any]) -> str:
    line = "" if fields["line"] is None else f":{fields['line']}"
    return visible_text(f"{fields['source']}{line}")


def _plane(sample: ShownSample, finished: FinishedOutput) -> Iterator[RenderableType]:
    """Yield the position of a sample on the plane, and the reason for the decision on it."""
    if "quadrant" not in sample.fields:
        return
    p, e = sample.fields["error_rank"], sample.fields["entropy_rank"]
    alpha = finished.manifest["thresholds"]["alpha"]
    yield draw_plane(p, e, alpha)
    label = sample.fields["quadrant"]
    yield Text(f"Its perplexity rank is {p:.1%}, its entropy rank {e:.1%}.")
    prune, entry = finished.prune, entry_alpha(p, e)
    if prune.strategy != "q_tuning":
        reason = f"The strategy {prune.strategy} decides. The quadrant is {label}, {QUADRANTS[label][0]}."
    elif prune.quadrant_rule is not None:
        reason = f"The rule {prune.quadrant_rule} labels it {label}, {QUADRANTS[label][0]}."
    else:
        reason = f"{label}, {QUADRANTS[label][0]}: {QUADRANTS[label][1]}. "
        reason += f"It is kept if alpha is at least {entry:.4f}. The job's alpha is {alpha:.4f}."
    yield Text(reason + "\n")


def _hardest(sample: ShownSample) -> Iterator[RenderableType]:
    """Yield the trained tokens with the highest perplexity."""
    trained = [token for token in sample.tokens if token.nll is not None]
    worst = sorted(trained, key=lambda token: -(token.nll or 0.0))[:5]
    numbers = [("NLL", "right"), ("entropy", "right"), ("score", "right")]
    table = _table("Hardest tokens", [("token", "left"), *numbers, ("", "left"), ("", "left")])
    top = max((token.nll or 0.0 for token in worst), default=0.0) or 1.0
    for token in worst:
        values = (number(value) for value in (token.nll, token.entropy, token.score))
        table.add_row(_cell(repr(token.text)), *values, bar((token.nll or 0.0) / top, BAR_WIDTH), token.state)
    yield table


def rows_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Return chosen columns, a row a sample."""
    table = _table("", [(name, "left") for name in names])
    for row in rows:
        table.add_row(*(_cell(_short(row.get(name))) for name in names))
    return table


def groups_table(name: str, groups: Sequence[Group]) -> Table:
    """Return the counts and scores of each value of a field."""
    shares = [*QUADRANTS, "kept"] if any(group.quadrants for group in groups) else []
    columns = [(name, "left"), ("samples", "right"), *((share, "right") for share in shares)]
    columns += [("", "left")] if shares else []
    table = _table("", [*columns, ("perplexity", "right"), ("entropy", "right")], gap=1)
    for group in groups:
        value = Text(shorten(visible_text(group.value).replace("\n", "⏎"), NAME_CHARS))
        scores = number(group.perplexity), number(group.entropy)
        table.add_row(value, count(group.num_samples), *_shares(group), *scores)
    return table


def _shares(group: Group) -> Iterator[str]:
    for samples in group.quadrants.values():
        yield percent(samples, group.num_samples)
    if group.kept is not None:
        yield percent(group.kept, group.num_samples)
        yield bar(group.kept / group.num_samples, BAR_WIDTH // 2)


def rejected_card(row: Mapping[str, Any]) -> Lines:
    """Return a rejected record: its source, the reason, and its beginning."""
    head = Text(_source(row), style="bold").append(f"  {row['reason']}", "yellow not bold")
    lines = [head, Text(f"  {_line(row['detail'] or '', VALUE_CHARS)}")]
    if row["record"]:
        lines.append(Text(f"  {_line(row['record'], VALUE_CHARS // 2)}", style="dim"))
    return Lines(*lines, Text())


def fields_table(records: Records) -> Table:
    """Return the columns that conditions, orders and tables can name."""
    table = _table("", [("column", "left"), ("type", "left"), ("", "left")])
    for field in records.fields.values():
        table.add_row(Text(visible_text(field.name)), Text(shorten(str(field.type), NAME_CHARS)), _about(field))
    return table


def _about(field: Field) -> Text:
    renamed = field.is_own and field.name != field.column
    own = f"the records' own {visible_text(field.column)}" if renamed else "the records' own"
    return Text(own if field.is_own else field.about)


# --- values


def _table(title: str, columns: Sequence[tuple[str, str]], gap: int = 2) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, padding=(0, gap, 0, 0))
    for name, justify in columns:
        table.add_column(_cell(visible_text(name)), justify=justify, no_wrap=justify == "right")  # type: ignore[arg-type]
    return table


def _pairs(values: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in values.items():
        table.add_row(Text(visible_text(name)), Text(value))
    return table


def _line(value: Any, limit: int) -> str:
    """Return a value on one line, nested ones as JSON."""
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    return shorten(visible_text(text).replace("\n", "⏎").replace("\t", "⇥"), limit)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return NOTHING if value is None else _line(value, CELL_CHARS)


def _cell(text: str) -> Text:
    return Text(text, overflow="fold")
