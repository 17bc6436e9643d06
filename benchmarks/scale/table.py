"""Write the figures of benchmarks.scale as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MIB, GIB = 1 << 20, 1 << 30
STAGES = ("plan", "score", "thresholds", "prune")
MEMORY = ["driver MiB (unique)", "largest worker MiB (unique)"]


def render(found: dict[str, Any]) -> str:
    """Return all tables that there are figures for."""
    parts = []
    if found["sizes"]:
        parts += [_sizes(found["sizes"]), _memory(found["sizes"])]
    if "one_file" in found:
        parts.append(_one_file(found["one_file"]))
    if "mixed" in found:
        parts.append(_mixed(found["mixed"]))
    return "\n".join(parts)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---:"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sizes(rows: Sequence[dict[str, Any]]) -> str:
    names = ["records", *(f"{name} rows/s" for name in STAGES), "all stages rows/s", "growth", "with start s"]
    lines = []
    before: dict[str, Any] | None = None
    for row in rows:
        seconds = row["seconds"]
        spent, growth = sum(seconds.values()), ""
        if before is not None:
            times, more = spent / sum(before["seconds"].values()), row["records"] / before["records"]
            growth = f"{times:.1f} x for {more:.0f} x"
        rates = [_rate(row["records"], seconds[name]) for name in STAGES]
        lines.append([f"{row['records']:,}", *rates, _rate(row["records"], spent), growth, f"{row['total_s']:.0f}"])
        before = row
    return _table(names, lines)


def _memory(rows: Sequence[dict[str, Any]]) -> str:
    names = ["records", "shards", *MEMORY, "all unique MiB", "input MiB", "output MiB"]
    sizes = ("all_unique_bytes", "input_bytes", "output_bytes")
    lines = [
        [f"{row['records']:,}", str(row["shards"]), *_peaks(row), *(_mib(row[name]) for name in sizes)] for row in rows
    ]
    return _table(names, lines)


def _one_file(row: dict[str, Any]) -> str:
    cells = {
        "one file GiB": f"{row['file_bytes'] / GIB:.1f}",
        "records": f"{row['records']:,}",
        "shards": f"{row['shards']:,}",
        "largest MiB": f"{row['largest_shard_bytes'] / MIB:.1f}",
        "plan MiB": f"{row['plan_bytes'] / MIB:.2f}",
        "start and plan s": f"{row['start_and_plan_s']:.0f}",
        "shards scored": str(row["scored_shards"]),
        "rows/s": f"{row['rows_per_s']:,}",
        **dict(zip(MEMORY, _peaks(row), strict=True)),
    }
    return _table(list(cells), [list(cells.values())])


def _mixed(row: dict[str, Any]) -> str:
    speed = row["performance"]
    cells = {
        "mixed records": f"{row['records']:,}",
        "shards": str(row["shards"]),
        "tokens": f"{speed['tokens']:,}",
        "score s": f"{speed['score_s']:.1f}",
        "actors busy": f"{speed['engine_busy_share']:.1%}",
        "first actor idle before the end s": f"{speed['tail_s']:.2f}",
        **dict(zip(MEMORY, _peaks(row), strict=True)),
    }
    return _table(list(cells), [list(cells.values())])


def _peaks(row: dict[str, Any]) -> list[str]:
    return [f"{_mib(row[f'{of}_rss_bytes'])} ({_mib(row[f'{of}_unique_bytes'])})" for of in ("driver", "worker")]


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:,.0f}" if seconds > 0 else "-"


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f}"
