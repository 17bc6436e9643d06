"""Tables of benchmarks/quality/RESULTS.md and its charts, from the results of all runs.

A figure over seeds is `mean ± standard deviation (number of seeds)`. One is marked where seeds leave no doubt against
random rows: its worst seed is above the best of random (+), or its best is below random's worst (-).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.grids import SECTIONS
from benchmarks.quality.spec import RunSpec

ENOUGH_SEEDS = 3
Result = dict[str, Any]
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one spec, over seeds."""

    spec: RunSpec
    results: Sequence[Result]

    def last(self, test: str, measure: str) -> list[float]:
        """Return a measure at the end of each run that has the test."""
        ends = [result["curve"][-1]["tests"] for result in self.results]
        return [end[test][measure] for end in ends if test in end]

    @property
    def tests(self) -> list[str]:
        """What is held out."""
        return list(self.results[0]["curve"][-1]["tests"])

    def half_way(self) -> list[float]:
        """Exact match of normal rows in the middle of each run: some tasks are learned by the end whatever is done."""
        return [result["curve"][len(result["curve"]) // 2 - 1]["tests"]["normal"]["exact"] for result in self.results]

    def cost(self, name: str) -> list[float]:
        """Return a cost of each run."""
        return [result["curve"][-1][name] for result in self.results]

    def kept(self, kind: str) -> list[float]:
        """Its share of the rows trained on after warm-up."""
        return [result["kept"][kind] for result in self.results]


def collect(specs: Iterable[RunSpec], results: Sequence[Result]) -> list[Runs]:
    """Return runs by spec, in the order given. Specs without a run are left out."""
    found = []
    for spec in dict.fromkeys(replace(spec, seed=0) for spec in specs):
        own = [result for result in results if replace(RunSpec(**result["spec"]), seed=0) == spec]
        if own:
            found.append(Runs(spec, own))
    return found


# --- tables


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def mark(values: Sequence[float], others: Sequence[float]) -> str:
    """Return the mark of a method whose seeds are all beyond all of the others."""
    if min(len(values), len(others)) < ENOUGH_SEEDS:
        return ""
    return " +" if min(values) > max(others) else " -" if max(values) < min(others) else ""


def table(runs: Sequence[Runs], columns: Sequence[str], baselines: Sequence[Runs]) -> str:
    """Markdown: what differs between the runs, then measures at their end."""
    rows = [_row(each, columns, baselines) for each in runs]
    fullest = max(rows, key=len)
    used = [name for name in fullest if any(row.get(name) for row in rows)]
    lines = [used, ["---"] * len(used), *([row.get(name, "") for name in used] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pivot(runs: Sequence[Runs], by: Sequence[str], across: str, baselines: Sequence[Runs]) -> str:
    """Markdown: one measure for each value of what the columns are."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for each in runs:
        for name, figure in _outcome(each, baselines).items():
            key = (*(COLUMNS[column](each.spec) for column in by), name)
            rows.setdefault(key, {})[COLUMNS[across](each.spec)] = figure
    columns = sorted({column for row in rows.values() for column in row}, key=_order_of(runs, across).index)
    lines = [[*by, "measure", *columns], ["---"] * (len(by) + 1 + len(columns))]
    lines += [[*key, *(row.get(column, "") for column in columns)] for key, row in sorted(rows.items(), key=_by_task)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _order_of(runs: Sequence[Runs], column: str) -> list[str]:
    """Values in the order in which they come first."""
    return list(dict.fromkeys(COLUMNS[column](each.spec) for each in runs))


def _by_task(row: tuple[tuple[str, ...], Any]) -> tuple[str, str]:
    """Rows of one task and measure together, otherwise as they came."""
    return row[0][0], row[0][-1]


def _row(runs: Runs, columns: Sequence[str], baselines: Sequence[Runs]) -> Row:
    kinds = {kind: runs.kept(kind) for kind in ("noise", "trivial", "rare")}
    tests = [name for name in runs.tests if name != "rare"]
    calibration = {
        f"{title}{', ' + test if len(tests) > 1 else ''}": spread(runs.last(test, measure), 2)
        for test in tests
        for title, measure in (("NLL", "nll"), ("ECE", "ece"))
    }
    return {
        **{name: COLUMNS[name](runs.spec) for name in columns},
        "exact, half way": spread(runs.half_way()) if runs.spec.task == "long" else "",
        **(outcome := _outcome(runs, baselines)),
        **{name: figure for name, figure in calibration.items() if name not in outcome},
        "trained: noise / trivial / rare": " / ".join(f"{np.mean(values):.0%}" for values in kinds.values()),
        "scored per trained": f"{np.mean(runs.cost('scored_tokens')) / np.mean(runs.cost('trained_tokens')):.1f}",
        "CPU s": f"{np.mean(runs.cost('cpu_s')):.0f}",
        "seeds": str(len(runs.results)),
    }


def _outcome(runs: Runs, baselines: Sequence[Runs]) -> dict[str, str]:
    """Return the main measure of a method: exact match of each test, or NLL where no model of this size has any."""
    random = next((each for each in baselines if _is_random_of(each.spec, runs.spec)), None)
    named = (
        {"NLL": ("normal", "nll")} if runs.spec.task == "gsm8k" else {f"exact, {t}": (t, "exact") for t in runs.tests}
    )
    digits = 2 if runs.spec.task == "gsm8k" else 3
    return {
        name: spread(runs.last(*what), digits) + (mark(runs.last(*what), random.last(*what)) if random else "")
        for name, what in named.items()
    }


def _is_random_of(random: RunSpec, spec: RunSpec) -> bool:
    """Return whether one is the other's data without a choice."""
    same = ("task", "noise", "noise_rate", "trivial_rate", "steps", "rows", "width")
    is_random = (random.method, random.mode) == ("random", "dynamic")
    return is_random and all(getattr(random, name) == getattr(spec, name) for name in same)


COLUMNS: dict[str, Callable[[RunSpec], str]] = {
    "task": lambda spec: spec.task,
    "noise": lambda spec: f"{spec.noise} {spec.noise_rate:.0%}",
    "method": lambda spec: f"{spec.method}{', static' if spec.mode == 'static' else ''}",
    "keep": lambda spec: f"{spec.keep:.1%}",
    "steps": lambda spec: f"{spec.steps:,}",
    "warm-up": lambda spec: str(spec.warmup),
    "tokens": lambda spec: f"{spec.token_ratio:.0%} {spec.token_strategy}" if spec.token_ratio < 1 else "all",
    "of answers of": lambda spec: (
        ("any length" if spec.min_tokens == 1 else f"{spec.min_tokens} tokens on") if spec.token_ratio < 1 else ""
    ),
}

SHOWN: dict[str, tuple[str, ...]] = {
    "main": ("task", "method"),
    "time": ("task", "method", "steps"),
    "warmup": ("task", "method", "warm-up"),
    "tokens": ("task", "method", "tokens"),
    "mixed": ("method", "tokens", "of answers of"),
    "gsm8k": ("method", "tokens"),
    "probe": ("method",),
}
PIVOTED: dict[str, tuple[tuple[str, ...], str]] = {
    "keep": (("task", "method"), "keep"),
    "ratios": (("task", "method", "tokens"), "keep"),
    "noise": (("task", "method"), "noise"),
    "gsm8k-keep": (("task", "method"), "keep"),
}
"""What the rows are, and the columns."""


def agreement_table(agreements: Sequence[Result]) -> str:
    """Markdown: cosines by method, in columns of task, held-out rows and step."""
    rows: dict[tuple[str, float], dict[str, list[float]]] = {}
    for each in agreements:
        own = rows.setdefault((each["method"], each["keep"]), {})
        for test, cosine in each["cosine"].items():
            own.setdefault(f"{each['task']}, {test}, step {each['step']}", []).append(cosine)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["method", "keep", *columns], ["---"] * (len(columns) + 2)]
    lines += [[name, f"{keep:.1%}", *(spread(row[c], 2) for c in columns)] for (name, keep), row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str, name: str, content: str) -> str:
    """Replace the text of a page between `<!-- NAME -->` and `<!-- end -->`."""
    made = f"<!-- {name} -->\n{content}\n<!-- end -->"
    return re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: made, text, flags=re.DOTALL)


# --- pictures


def curves(runs: Sequence[Runs], against: str, title: str) -> Any:
    """Exact match by steps or seconds: mean of seeds as a line, from the worst to the best as a band."""
    import altair as alt

    rows = [row for each in runs for test in ("normal", "rare") for row in _points(each, test, against)]
    names = list(dict.fromkeys(row["method"] for row in rows))
    legend = alt.Legend(symbolOpacity=1, symbolType="stroke", symbolStrokeWidth=3)
    color = alt.Color("method:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=PALETTE[: len(names)]))
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("x:Q", title=title), color=color)
    band = base.mark_area(opacity=0.12).encode(y="low:Q", y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("mean:Q", title="exact match", axis=alt.Axis(format="%")))
    panels = alt.layer(band, line).properties(width=230, height=190).facet(column=alt.Column("panel:N", title=None))
    return panels.resolve_scale(x="independent").configure_legend(orient="bottom")


def _points(runs: Runs, test: str, against: str) -> Iterable[dict[str, Any]]:
    for points in zip(*(result["curve"] for result in runs.results), strict=True):
        exact = [point["tests"][test]["exact"] for point in points if test in point["tests"]]
        if exact:
            yield {
                "panel": f"{runs.spec.task}, {test} rows",
                "method": _name(runs.spec),
                "x": float(np.mean([point[against] for point in points])),
                "mean": float(np.mean(exact)),
                "low": min(exact),
                "high": max(exact),
            }


def _name(spec: RunSpec) -> str:
    return COLUMNS["method"](spec) + (f", warm-up {spec.warmup}" if spec.method == "q-tuning" else "")


DRAWN = (
    ("q-tuning", "dynamic", 100),
    ("q-tuning", "dynamic", 300),
    ("random", "dynamic", 100),
    ("q-tuning", "static", 100),
    ("perplexity-highest", "dynamic", 100),
    ("entropy-highest", "dynamic", 100),
)
"""Method, mode, warm-up."""
PALETTE = ("#0b5fa5", "#5b2a86", "#8a8f98", "#c8500a", "#1a9e77", "#b8860b")
"""Told apart with any colour vision, as in the report's charts."""


def draw(runs: Sequence[Runs], folder: Path) -> None:
    """Learning curves of the main comparison."""
    by_name = {(each.spec.task, each.spec.method, each.spec.mode, each.spec.warmup): each for each in runs}
    tasks = dict.fromkeys(each.spec.task for each in runs)
    names = [(task, *name) for name in DRAWN for task in tasks]
    drawn = [by_name[name] for name in names if name in by_name]
    folder.mkdir(parents=True, exist_ok=True)
    for name, against, title in (("steps", "step", "steps"), ("seconds", "cpu_s", "CPU seconds, one thread")):
        curves(drawn, against, title).save(folder / f"quality-{name}.png", scale_factor=1.25)


# --- all of it


def write_report(results: Sequence[Result], agreements: Sequence[Result], page: Path, images: Path) -> None:
    """Fill the tables between `<!-- NAME -->` and `<!-- end -->` of a page, and draw its charts into a folder."""
    text = page.read_text(encoding="utf-8")
    baselines = collect((spec for specs in SECTIONS.values() for spec in specs if spec.method == "random"), results)
    for name, specs in SECTIONS.items():
        runs = collect(specs, results)
        if runs and name in SHOWN:
            text = filled(text, name, table(runs, SHOWN[name], baselines))
        elif runs and name in PIVOTED:
            text = filled(text, name, pivot(runs, *PIVOTED[name], baselines))
    if agreements:
        text = filled(text, "agreement", agreement_table(agreements))
    page.write_text(text, encoding="utf-8")
    drawn = collect([*SECTIONS["main"], *SECTIONS["warmup"]], results)
    if drawn:
        draw(drawn, images)
