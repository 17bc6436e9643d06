"""Print the share of each planted kind in each quadrant.

    python examples/demo/table.py OUT        # OUT: the output folder of `qtune prune examples/demo/data.jsonl ...`

Every number is counted from OUT. The expected quadrants are defined here, from the meaning of the kinds alone, and are
shown with the results. Nothing is corrected or left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
KEPT = ("Q2", "Q4")
BAR_CELLS = 4
HEADINGS = ("planted kind", "expect", "rows", "Q1\nremoved", "Q2\nkept", "Q3\nremoved", "Q4\nkept", "kept")  # fmt: skip
SIGNS = {"Q1": "▲▲", "Q2": "▲▼", "Q3": "▼▼", "Q4": "▼▲"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A planted kind with the quadrant that its meaning implies, or None."""

    name: str
    expected: str | None
    says: str


KINDS = (
    Kind("mislabeled", "Q1", "random wrong answers where the model is unsure"),
    Kind("trivial_repeat", "Q3", "what the model knows by heart, 15 times over"),
    Kind("misconception", "Q2", "right answers where the model believes a myth"),
    Kind("hard_but_right", "Q4", "right answers where the model is unsure"),
    Kind("ordinary", None, "right answers to everyday tasks and known facts"),
    Kind("mislabeled_known", "Q2", "wrong answers where the model is right: a blind spot"),
)


def _read(folder: Path, columns: list[str]) -> pa.Table:
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    if not files:
        sys.exit(f"{folder} is missing. Give the output folder of a finished run over examples/demo/data.jsonl.")
    absent = [c for c in columns if c not in files[0].schema_arrow.names]
    if absent:
        sys.exit(f"{folder} has no column {', '.join(absent)}: it holds other data than examples/demo/data.jsonl.")
    return pa.concat_tables([file.read(columns=columns) for file in files])


def count_quadrants(output: Path) -> dict[str, NDArray[np.int64]]:
    """Count the rows of each planted kind in Q1, Q2, Q3, Q4: name -> (4,) counts."""
    planted = _read(output / "scores", ["sample_id", "planted"])
    labels = _read(output / "quadrants", ["sample_id", "quadrant"])
    joined = planted.join(labels, keys="sample_id", join_type="full outer")
    if joined.num_rows != planted.num_rows or any(joined[c].null_count for c in ("planted", "quadrant")):
        sys.exit(f"{output}: scores/ and quadrants/ hold different samples. Let the run finish, or start it again.")
    counts: dict[str, NDArray[np.int64]] = {}
    for row in joined.group_by(["planted", "quadrant"]).aggregate([([], "count_all")]).to_pylist():
        kind = counts.setdefault(row["planted"], np.zeros(4, dtype=np.int64))
        kind[QUADRANTS.index(row["quadrant"])] = row["count_all"]
    return counts


def _share(share: float, *, expected: bool) -> Text:
    style = "bold green" if expected else "dim" if share < 0.005 else ""
    return Text(f"{'█' * round(share * BAR_CELLS):<{BAR_CELLS}} {share:4.0%}", style=style)


def build_table(counts: dict[str, NDArray[np.int64]]) -> Table:
    """Build one line for each planted kind and one for all. Green marks the expected quadrant."""
    caption = "▲▼: error high, uncertainty low; green: the expected quadrant"
    table = Table(title="Where each planted kind landed", caption=caption, box=SIMPLE_HEAD, padding=0)
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in {"rows", "kept"} else "left", no_wrap=True)
    for kind in [k for k in KINDS if k.name in counts]:
        sign = f"{kind.expected}  {SIGNS[kind.expected]}" if kind.expected else "any"
        table.add_row(kind.name, sign, *_numbers(counts[kind.name], kind.expected))
    table.add_section()
    total = np.sum(list(counts.values()), axis=0)
    table.add_row("all", "", *_numbers(total, None))
    return table


def _numbers(count: NDArray[np.int64], expected: str | None) -> list[str | Text]:
    shares = count / count.sum()
    kept = sum(float(shares[QUADRANTS.index(q)]) for q in KEPT)
    bars = [_share(float(s), expected=q == expected) for q, s in zip(QUADRANTS, shares, strict=True)]
    return [f"{count.sum():,}", *bars, f"{kept:.0%}"]


def main() -> int:
    """Print the table, a description of the kinds, and the path of the report."""
    if len(sys.argv) != 2:
        sys.exit("Usage: python examples/demo/table.py OUT")
    output = Path(sys.argv[1])
    counts = count_quadrants(output)
    unknown = sorted(set(counts) - {k.name for k in KINDS})
    if unknown:
        sys.exit(f"{output}/scores holds planted kinds that the demo does not make: {', '.join(unknown)}.")
    console = Console()
    console.print(build_table(counts))
    for kind in KINDS:
        console.print(f"  [bold]{kind.name:<17}[/bold] {kind.says}", highlight=False)
    console.print("What this shows and what it does not: examples/demo/README.md", highlight=False)
    console.print(f"Report: {(output / 'report.html').resolve()}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
