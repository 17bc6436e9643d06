"""Measure size, time and memory of report.html over jobs of growing size, as a Markdown table.

Scores are made up (log-normal perplexity and entropy, correlated) and pruned by the real method; the clock begins when
the report's contents are there, as they are in a job. The page is built twice: the first time includes the imports of
Altair and of the chart library. Each row runs in a process of its own, so that its peak resident memory is its own;
`at rest` is what the process had before, the scores and contents included.

    python -m benchmarks.scale.report --sizes 1e3 1e4 1e5 1e6
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import psutil

MIB = 1 << 20


def measure(num_samples: int) -> dict[str, float]:
    """Build the page of so many samples in this process."""
    from qtune_service.report.html import render_report
    from tests.report_data import made_up_report, made_up_scores

    data = made_up_report(made_up_scores(num_samples), keep_ratio=0.25)
    at_rest = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        page = render_report(data)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"first_s": seconds[0], "again_s": seconds[1], "bytes": len(page.encode()), "rest": at_rest, "peak": peak}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print(
        "| samples | build s | build again s | page bytes | at rest MiB | peak MiB |\n|---:|---:|---:|---:|---:|---:|"
    )
    for size in arguments.sizes:
        command = [sys.executable, "-m", "benchmarks.scale.report", "--one", str(int(size))]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"| {int(size):,} | {row['first_s']:.1f} | {row['again_s']:.2f} | {row['bytes']:,} | "
            f"{row['rest'] / MIB:.0f} | {row['peak'] / MIB:.0f} |"
        )


if __name__ == "__main__":
    main()
