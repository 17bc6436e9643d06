"""Time and memory of stage 1 over populations of growing size, as a Markdown table.

Each row runs in a process of its own, so that its peak resident memory is its own; the two float64 input columns are
part of it. The data are correlated log-normal scores, as perplexity and entropy are, and once heavily tied ones.

    python benchmarks/thresholds.py --sizes 1e5 1e6 1e7 1e8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray

from qtune_service.core.thresholds import select

CORRELATION = 0.8
CHUNK = 1 << 20  # samples drawn at a time, so that making the data does not set the peak


def population(size: int, *, tied: bool, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean NLL and mean entropy (size,) in nats; `tied` rounds both to tenths."""
    rng = np.random.default_rng(seed)
    nll, entropy = np.empty(size), np.empty(size)
    for lo in range(0, size, CHUNK):
        part = slice(lo, min(lo + CHUNK, size))
        shared, own = rng.normal(size=(2, part.stop - lo))
        nll[part] = np.exp(0.6 * shared)
        entropy[part] = np.exp(0.5 * (CORRELATION * shared + (1 - CORRELATION**2) ** 0.5 * own))
        if tied:
            nll[part], entropy[part] = nll[part].round(1), entropy[part].round(1)
    return nll, entropy


def measure(size: int, ratio: float, *, tied: bool) -> dict[str, float]:
    """One selection in this process."""
    nll, entropy = population(size, tied=tied)
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    selection = select(nll, entropy, sample_keep_ratio=ratio)
    return {
        "seconds": time.perf_counter() - start_s,
        "cpu_seconds": time.process_time() - cpu_start_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "input_bytes": nll.nbytes + entropy.nbytes,
        "alpha": selection.thresholds.alpha,
        "over": selection.kept - selection.target,
    }


def measure_apart(size: int, ratio: float, *, tied: bool) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--one", "--sizes", str(size), "--ratio", str(ratio)]
    command += ["--tied"] if tied else []
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def table(sizes: list[int], ratio: float) -> None:
    """Print one row a size, then the largest size again with ties."""
    print(f"numpy {np.__version__}, {os.cpu_count()} cores, sample_keep_ratio {ratio}\n")
    print("| samples | data | seconds | CPU s | ns a sample | growth | peak GiB | of it input | alpha | over target |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    previous_s = 0.0
    for size, tied in [*((size, False) for size in sizes), (max(sizes), True)]:
        row = measure_apart(size, ratio, tied=tied)
        growth = f"{row['seconds'] / previous_s:.1f} x" if previous_s and not tied else ""
        print(
            f"| {size:,} | {'tied' if tied else 'log-normal'} | {row['seconds']:.3f} | {row['cpu_seconds']:.3f} "
            f"| {row['seconds'] / size * 1e9:.0f} | {growth} | {row['peak_bytes'] / 2**30:.2f} "
            f"| {row['input_bytes'] / 2**30:.2f} | {row['alpha']:.4f} | {row['over']:,} |",
            flush=True,
        )
        previous_s = row["seconds"]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e5, 1e6, 1e7, 1e8], help="numbers of samples")
    parser.add_argument("--ratio", type=float, default=0.5, help="sample_keep_ratio")
    parser.add_argument("--one", action="store_true", help="measure the first size here and print JSON")
    parser.add_argument("--tied", action="store_true", help="with --one: heavily tied scores")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes]
    if arguments.one:
        print(json.dumps(measure(sizes[0], arguments.ratio, tied=arguments.tied)))
    else:
        table(sizes, arguments.ratio)


if __name__ == "__main__":
    main()
