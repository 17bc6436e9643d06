"""Does it work? Train tiny models on data with planted flaws, by Q-Tuning and by what it is compared with.

    python -m benchmarks.quality run --results benchmarks/quality/results.jsonl --seeds 0 1 2
    python -m benchmarks.quality agree --results benchmarks/quality/agreement.jsonl --seeds 0 1 2
    python -m benchmarks.quality report --results benchmarks/quality/results.jsonl benchmarks/quality/agreement.jsonl

Each run's result is a line of JSON, written when it ends; a run whose line is there is not made again. The report
fills the marked tables of benchmarks/quality/RESULTS.md and draws its charts. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality.agreement import agreement
from benchmarks.quality.catalogue import task_of
from benchmarks.quality.grids import AGREEMENT, SECTIONS
from benchmarks.quality.report import write_report
from benchmarks.quality.spec import RunSpec
from benchmarks.quality.training import Run, quiet

DIGITS = 4


def planned(sections: list[str], seeds: list[int]) -> Iterator[RunSpec]:
    """Yield runs: those of a section's first seed before those of its next."""
    for section in sections:
        for seed in seeds:
            for spec in SECTIONS[section]:
                yield replace(spec, seed=seed)


def run_all(specs: Iterator[RunSpec], results: Path) -> None:
    """Make the runs that have no result yet."""
    for spec in specs:
        if spec in [RunSpec(**result["spec"]) for result in read_results(results)]:
            continue
        result = rounded(Run(spec, task_of(spec)).train())
        with results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
        last = result["curve"][-1]
        what = " ".join(f"{name} {test['exact']:.3f}" for name, test in last["tests"].items())
        print(f"{spec.task} {spec.mode} {spec.method} seed {spec.seed}: {what}, {last['cpu_s']:.0f} s", flush=True)


def agree_all(seeds: list[int], results: Path) -> None:
    """Compare gradients, for all tasks and seeds."""
    with results.open("w", encoding="utf-8") as lines:
        for seed in seeds:
            for spec, steps in AGREEMENT:
                for row in agreement(replace(spec, seed=seed), steps):
                    lines.write(json.dumps(rounded(row)) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the results that were written so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rounded(value: Any) -> Any:
    """Plain data with shorter numbers."""
    if isinstance(value, dict):
        return {key: each if key == "spec" else rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "agree", "report"))
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--page", type=Path, default=Path("benchmarks/quality/RESULTS.md"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    quiet()
    if given.action == "run":
        run_all(planned(given.sections, given.seeds), given.results[0])
    elif given.action == "agree":
        agree_all(given.seeds, given.results[0])
    else:
        rows = [row for path in given.results for row in read_results(path)]
        runs, agreements = [row for row in rows if "spec" in row], [row for row in rows if "cosine" in row]
        write_report(runs, agreements, given.page, given.images)


if __name__ == "__main__":
    main()
