"""Several outputs of the same data, compared with the first one: tables for the terminal, plain data, and a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from qtune_service.output.pairing import Pairing, pair
from qtune_service.output.query import read_rows, samples_of
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.text import count, number, percent, shorten

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
SHOWN_FIELDS = ("sample_id", "source", "line", "perplexity")
SOURCE_CHARS = 40


@dataclass(frozen=True, slots=True, eq=False)
class ComparedOutputs:
    """One output beside the first, and the samples that moved most between them."""

    a: FinishedOutput
    b: FinishedOutput
    pairing: Pairing
    farthest: NDArray[np.int64]  # (k,) positions in the pairs

    @classmethod
    def of(cls, a: FinishedOutput, b: FinishedOutput, num_rows: int) -> ComparedOutputs:
        """Pair two outputs. Raise what `pair` raises."""
        pairing = pair(a, b)
        return cls(a, b, pairing, pairing.farthest(num_rows))

    def rows(self) -> list[dict[str, Any]]:
        """Return the samples that moved most, the farthest first, as plain data."""
        indices = self.pairing.rows[:, self.farthest]
        sides = [
            read_rows(samples_of(finished), index, list(SHOWN_FIELDS))
            for finished, index in zip((self.a, self.b), indices, strict=True)
        ]
        samples = self.pairing.a, self.pairing.b
        return [
            {
                "sample_id": one["sample_id"],
                "source": one["source"],
                "line": one["line"],
                "distance": float(self.pairing.shifts[pair_index]),
                **{
                    name: {
                        "sample_id": row["sample_id"],
                        "quadrant": QUADRANTS[side.quadrant[at] - 1],
                        "kept": bool(side.kept[at]),
                        "perplexity": row["perplexity"],
                        "error_rank": float(side.ranks[0, at]),
                        "entropy_rank": float(side.ranks[1, at]),
                    }
                    for name, row, side, at in zip("ab", (one, other), samples, positions, strict=True)
                },
            }
            for one, other, positions, pair_index in zip(*sides, indices.T, self.farthest, strict=True)
        ]


def describe_outputs(compared: Sequence[ComparedOutputs]) -> Iterator[RenderableType]:
    """Yield for each output what is paired, the quadrants between which samples moved, and those that moved most."""
    for one in compared:
        yield Text(f"\n{one.a.root} -> {one.b.root}", style="bold")
        yield _paired(one)
        if one.pairing.rows.size:
            yield _moves(one.pairing)
            yield _agreement(one.pairing)
        if len(one.farthest):
            yield _rows(one)


def _paired(one: ComparedOutputs) -> Text:
    pairs, names = one.pairing.rows.shape[1], {"place": "by file and line", "line": "by file and line"}
    how = ", ".join(
        f"{count(number_of)} {names.get(rule, 'by content')}"
        for rule, number_of in one.pairing.num_by.items()
        if number_of
    )
    unpaired = [
        f"{count(len(side.kept) - pairs)} only in {finished.root}"
        for side, finished in ((one.pairing.a, one.a), (one.pairing.b, one.b))
        if len(side.kept) > pairs
    ]
    return Text(f"{count(pairs)} samples paired{f' ({how})' if how else ''}; {'; '.join(unpaired) or 'none is left'}")


def _moves(pairing: Pairing) -> Table:
    """Return the matrix of moves: a row for each quadrant in the first output."""
    table = _table("from", *(f"to {name}" for name in QUADRANTS), "moved")
    for i, (name, row) in enumerate(zip(QUADRANTS, pairing.moves.tolist(), strict=True)):
        total = sum(row)
        table.add_row(name, *map(count, row), percent(total - row[i], total) if total else "")
    return table


def _agreement(pairing: Pairing) -> Text:
    (_, by_b), (by_a, by_both) = pairing.kept_table.tolist()
    kept = f"kept by both {count(by_both)}, by the first alone {count(by_a)}, by the second alone {count(by_b)}"
    error, entropy = ("none" if value is None else f"{value:.3f}" for value in pairing.rank_correlations())
    return Text(f"{kept}\nrank correlation: perplexity {error}, entropy {entropy}")


def _rows(one: ComparedOutputs) -> Table:
    table = _table("moved most", "from", "to", "perplexity", "error rank", "entropy rank")
    for row in one.rows():
        a, b = row["a"], row["b"]
        place = f"{shorten(row['source'], SOURCE_CHARS)}:{row['line']}"
        ranks = [f"{a[name]:.2f} -> {b[name]:.2f}" for name in ("error_rank", "entropy_rank")]
        perplexity = f"{number(a['perplexity'])} -> {number(b['perplexity'])}"
        table.add_row(place, a["quadrant"], b["quadrant"], perplexity, *ranks)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def outputs_json(compared: Sequence[ComparedOutputs]) -> list[dict[str, Any]]:
    """Return all figures, an entry for each output after the first."""
    found = []
    for one in compared:
        pairs, (error, entropy) = one.pairing.rows.shape[1], one.pairing.rank_correlations()
        (neither, by_b), (by_a, by_both) = one.pairing.kept_table.tolist()
        found.append(
            {
                "a": one.a.root,
                "b": one.b.root,
                "paired": pairs,
                "paired_by": dict(one.pairing.num_by),
                "only_in_a": len(one.pairing.a.kept) - pairs,
                "only_in_b": len(one.pairing.b.kept) - pairs,
                "kept": {"both": by_both, "a": by_a, "b": by_b, "neither": neither},
                "rank_correlation": {"error": error, "entropy": entropy},
                "moves": {
                    name: dict(zip(QUADRANTS, row, strict=True))
                    for name, row in zip(QUADRANTS, one.pairing.moves.tolist(), strict=True)
                },
                "farthest": one.rows(),
            }
        )
    return found


def outputs_chart(compared: Sequence[ComparedOutputs]) -> dict[str, Any]:
    """Return a Vega-Lite chart, a panel for each output: the share of each quadrant that moved to each other one."""
    import altair as alt

    rows = []
    for one in compared:
        for name, cells in zip(QUADRANTS, one.pairing.moves.tolist(), strict=True):
            total = max(sum(cells), 1)
            for other, cell in zip(QUADRANTS, cells, strict=True):
                rows.append({"output": one.b.root, "from": name, "to": other, "samples": cell, "share": cell / total})
    base = alt.Chart().encode(
        x=alt.X("to:O", title="quadrant there", axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("from:O", title=f"quadrant in {compared[0].a.root}"),
        tooltip=["from:O", "to:O", "samples:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    cells = base.mark_rect(stroke="white", strokeWidth=2).encode(
        color=alt.Color("share:Q", title="share", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    )
    texts = base.mark_text(fontSize=13).encode(
        text=alt.Text("samples:Q", format=","),
        color=alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black")),
    )
    panel = alt.layer(cells, texts, data=alt.InlineData(values=rows)).properties(width=260, height=220)
    chart = panel.facet(column=alt.Column("output:N", title=None, sort=[one.b.root for one in compared]))
    spec: dict[str, Any] = chart.to_dict()
    return spec
