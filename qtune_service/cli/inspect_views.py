"""Views of `qtune inspect` other than the manifest: in colour for people, as JSON for scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import typer
from rich.console import Console, RenderableType
from rich.text import Text

from qtune_service.errors import QueryError, SpecError
from qtune_service.output.query import (
    Found,
    Records,
    Selection,
    find,
    find_sample,
    group_by,
    index_of,
    read_rows,
    rejected_of,
    samples_of,
)
from qtune_service.output.reader import FinishedOutput
from qtune_service.report import terminal_samples as views
from qtune_service.report.terminal_samples import legend
from qtune_service.report.text import count
from qtune_service.report.token_view import ROWS_PAGE, plain, shown_samples

MAX_SAMPLES, MAX_ROWS = 5, 20
"""Shown without a limit."""
FILE_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Request:
    """Flags of the command."""

    sample: str | None = None
    quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None
    kept: bool | None = None
    where: str | None = None
    sort: str | None = None
    limit: int | None = None
    rejected: bool = False
    columns: str | None = None
    by: str | None = None
    list_columns: bool = False
    as_json: bool = False

    @property
    def given(self) -> list[str]:
        """Return the flags that select something."""
        values = {name.replace("_", "-"): value for name, value in asdict(self).items() if name != "as_json"}
        return [f"--{n}" for n, value in values.items() if value is not None and (value is not False or n == "kept")]

    @property
    def is_of_manifest(self) -> bool:
        """Return whether only the manifest is requested."""
        return not self.given

    def check(self) -> None:
        """Raise SpecError for flags that cannot be combined."""
        apart = {
            "--sample": {"--sample"},
            "--by": {"--by", "--quadrant", "--kept", "--where", "--limit"},
            "--list-columns": {"--list-columns", "--rejected"},
            "--rejected": {"--rejected", "--where", "--sort", "--limit", "--columns", "--list-columns"},
        }
        for flag, allowed in apart.items():
            wrong = [other for other in self.given if other not in allowed]
            if flag in self.given and wrong:
                raise SpecError(f"{flag} cannot be combined with {', '.join(wrong)}")

    def selection(self, default_limit: int) -> Selection:
        """Return the selection of the query."""
        limit = default_limit if self.limit is None else self.limit or None
        return Selection(self.quadrant, self.kept, self.where, self.sort or "", limit)


def show_samples(output: str, request: Request) -> None:
    """Print the requested view. Raises QueryError."""
    finished = FinishedOutput(output)
    records = rejected_of(finished) if request.rejected else samples_of(finished)
    view = _View(finished, records, request, _console())
    if request.list_columns:
        view.columns()
    elif request.sample is not None:
        view.sample(request.sample)
    elif request.by is not None:
        view.groups(request.by)
    elif request.columns is not None:
        view.table(request.columns)
    elif request.rejected:
        view.rejected()
    else:
        view.samples()


@dataclass(frozen=True, slots=True)
class _View:
    finished: FinishedOutput
    records: Records
    request: Request
    console: Console

    @property
    def signs(self) -> bool:
        """Return whether tokens are marked by signs, because there is no colour."""
        return self.console.no_color or self.console.color_system is None

    def columns(self) -> None:
        """Show the columns."""
        if self.request.as_json:
            fields = self.records.fields.values()
            self.lines({"column": f.name, "type": str(f.type), "own": f.is_own, "about": f.about} for f in fields)
        else:
            self.show(views.fields_table(self.records))

    def sample(self, sample_id: str) -> None:
        """Show one sample."""
        index = np.array([self._find_sample(sample_id)])
        shown = next(shown_samples(self.finished, self.records, index))
        if self.request.as_json:
            self.lines([shown.to_json()])
        else:
            self.show(views.sample_page(shown, self.finished, signs=self.signs))

    def _find_sample(self, sample_id: str) -> int:
        try:
            return find_sample(self.records, sample_id)
        except QueryError as error:
            if index_of(rejected_of(self.finished), sample_id) is None:
                raise
            hint = f"qtune inspect {self.finished.root} --rejected --where \"sample_id = '{sample_id}'\""
            raise QueryError(f"{sample_id} was rejected, so it has no scores", hint) from error

    def groups(self, name: str) -> None:
        """Show the quadrants of each value of a column."""
        if name == "category" and name not in self.records.fields:
            name = self.finished.category_column or name
        selection = self.request.selection(MAX_ROWS)
        every = group_by(self.records, name, replace(selection, limit=None))
        groups = every[: selection.limit]
        if self.request.as_json:
            self.lines(map(asdict, groups))
            return
        self.show(views.groups_table(name, groups))
        if len(groups) < len(every):
            self.show(Text(f"… and {count(len(every) - len(groups))} more; --limit 0 shows all", style="dim"))

    def table(self, names: str) -> None:
        """Show chosen columns."""
        chosen = [self.records.field(name.strip()).name for name in names.split(",")]
        found = find(self.records, self.request.selection(MAX_ROWS))
        rows = self._rows(found, chosen)
        if self.request.as_json:
            self.lines(rows)
        else:
            self.show(self._heading(found), views.rows_table(list(rows), chosen))

    def rejected(self) -> None:
        """Show rejected records."""
        found = find(self.records, self.request.selection(MAX_ROWS))
        names = [name for name in self.records.fields if name != "index"]
        rows = self._rows(found, names)
        if self.request.as_json:
            self.lines(rows)
            return
        self.show(self._heading(found))
        for row in rows:
            self.show(views.rejected_card(row))

    def _rows(self, found: Found, names: list[str]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(found.index), ROWS_PAGE):
            yield from read_rows(self.records, found.index[start : start + ROWS_PAGE], names)

    def samples(self) -> None:
        """Show samples with their tokens."""
        found = find(self.records, self.request.selection(MAX_SAMPLES))
        named = [name for name in found.fields if name != "index"]
        shown = shown_samples(self.finished, self.records, found.index, named)
        if self.request.as_json:
            self.lines(sample.to_json() for sample in shown)
            return
        self.show(self._heading(found))
        for sample in shown:
            self.show(views.sample_card(sample, signs=self.signs))
        if len(found.index):
            self.show(legend(signs=self.signs))

    def _heading(self, found: Found) -> Text:
        what = "rejected record" if self.request.rejected else "sample"
        text = f"{count(found.num_matching)} {what}{'' if found.num_matching == 1 else 's'}"
        if not self.request.selection(0).is_all:
            text += " match" + ("es" if found.num_matching == 1 else "")
        if len(found.index) < found.num_matching:
            text += f"; {count(len(found.index))} shown"
        if (sort := self.request.sort) and len(found.index):
            text += f", by {sort.removeprefix('-')}, {'highest' if sort.startswith('-') else 'lowest'} first"
        return Text(f"{text}\n", style="bold")

    def show(self, *parts: RenderableType) -> None:
        """Print for people. Outside a terminal lines are not broken, so that grep and diff find them whole."""
        for part in parts:
            self.console.print(part, highlight=False, soft_wrap=not self.console.is_terminal)

    def lines(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Print for scripts, one JSON object per line."""
        for value in values:
            typer.echo(json.dumps(plain(value), ensure_ascii=False))


def _console() -> Console:
    """Return a console, which is wide if its lines go into a file or another program."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=FILE_WIDTH)
