"""Compare distributed selection with DuckDB out of core: time, memory and disk of each, in turn, as JSON lines.

DuckDB reads the scores from Parquet shards, ranks each column by a window function over a sort that spills to disk, and
finds alpha by counts. It writes doubled ranks and labels in the order of the population, as a job needs them for its
shards. Up to `--check` samples its ranks, labels and alpha must equal those of selection.thresholds.select. The other
way is that of thresholds.py, with as many worker processes as DuckDB has threads. It does more: numbers of tokens, the
what-if curve and the report's sample are part of its time.

    python -m benchmarks.selection.out_of_core --sizes 1e7 3e7 --memory 1GB --folder /data
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.selection.thresholds import MadeUp, Setting, cpu_s, groups_of, measure_apart, peak_bytes
from qtune_service.samples import count_of_share
from qtune_service.selection.distributed import MAX_IN_MEMORY_SAMPLES
from qtune_service.selection.plane import entry_alpha_text
from qtune_service.selection.thresholds import select

BINS = 1 << 16


def write_scores(size: int, folder: Path) -> None:
    """Write a population as Parquet shards: index, mean NLL and mean entropy."""
    folder.mkdir()
    for group in groups_of(size, MAX_IN_MEMORY_SAMPLES):
        nll, entropy = MadeUp(tied=False).read(group, "mean_nll", "mean_entropy")
        index = np.arange(group.start, group.start + group.num_samples)
        table = pa.table({"index": index, "nll": nll, "entropy": entropy})
        pq.write_table(table, folder / f"part-{group.index:05}.parquet", compression="none", use_dictionary=False)


def select_by_duckdb(size: int, ratio: float, memory: str, threads: int, folder: Path) -> dict[str, Any]:
    """Select from the shards in `folder/scores`, and write `folder/labels.parquet`."""
    config = {"memory_limit": memory, "threads": threads, "temp_directory": str(folder / "spill")}
    database = duckdb.connect(str(folder / "work.db"), config=config | {"preserve_insertion_order": False})
    double_n = 2 * size
    table = f"read_parquet('{folder}/scores/*.parquet')"
    for column, rank in (("nll", "p"), ("entropy", "e")):
        # First and last position of a tie, from 0, are rank() - 1 and cume_dist() * N - 1.
        ranks = f"rank() OVER (ORDER BY {column}) - 1 + round(cume_dist() OVER (ORDER BY {column}) * {size})::BIGINT"
        database.execute(f"CREATE TABLE with_{rank} AS SELECT *, {ranks} AS {rank} FROM {table}")
        table = f"with_{rank}"
    database.execute("DROP TABLE with_p")
    entry = entry_alpha_text("p", "e", one=double_n, minimum="least", maximum="greatest")
    low, shift, below = 0, max(double_n.bit_length() - 16, 0), 0
    target = count_of_share(ratio, size)
    while True:
        counts = np.zeros(BINS, np.int64)
        bins = f"({entry} - {low + 1}) >> {shift}"
        where = f"{entry} > {low} AND {entry} <= {low + (BINS << shift)}"
        for at, count in database.execute(f"SELECT {bins}, count(*) FROM {table} WHERE {where} GROUP BY 1").fetchall():
            counts[at] = count
        reached = below + np.cumsum(counts)
        at = int(np.searchsorted(reached, target))
        low, below = low + (at << shift), int(reached[at] - counts[at])
        if shift == 0:
            break
        shift = max(shift - 16, 0)
    scaled_alpha = low + 1
    label = (
        f"CASE WHEN {entry} <= {scaled_alpha} THEN CASE WHEN p >= e THEN 2 ELSE 4 END "
        f"WHEN p + e > {double_n} THEN 1 ELSE 3 END"
    )
    rows = f"SELECT p, e, ({label})::TINYINT AS label FROM {table} ORDER BY index"
    database.execute(f"COPY ({rows}) TO '{folder}/labels.parquet' (COMPRESSION uncompressed, PRESERVE_ORDER true)")
    database.close()
    return {"alpha": scaled_alpha / double_n}


def check(size: int, ratio: float, alpha: float, folder: Path) -> None:
    """Exit unless ranks, labels and alpha are those of a selection in memory."""
    scores, labels = pq.read_table(folder / "scores"), pq.read_table(folder / "labels.parquet")
    scores = scores.sort_by("index")
    want = select(scores["nll"].to_numpy(), scores["entropy"].to_numpy(), sample_keep_ratio=ratio)
    pairs = (("p", want.ranked.nll_ranks), ("e", want.ranked.entropy_ranks), ("label", want.labels))
    if alpha != want.thresholds.alpha or any((labels[name].to_numpy() != column).any() for name, column in pairs):
        sys.exit(f"DuckDB differs from a selection in memory at {size:,} samples")


def measure(size: int, ratio: float, memory: str, threads: int, folder: Path, max_check: int) -> dict[str, Any]:
    """Measure DuckDB in this process. Disk is the largest size of its files, without the scores."""
    write_scores(size, folder / "scores")
    peak, is_done = [0], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.5):
            files = [path for path in (folder, folder / "spill") if path.is_dir()]
            sizes = [entry.stat().st_size for path in files for entry in path.iterdir() if entry.is_file()]
            peak[0] = max(peak[0], sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_s, cpu_start_s = time.perf_counter(), cpu_s()
    try:
        outcome = select_by_duckdb(size, ratio, memory, threads, folder)
    finally:
        seconds, cpu_seconds, rss = time.perf_counter() - start_s, cpu_s() - cpu_start_s, peak_bytes()
        is_done.set()
        watcher.join()
    if size <= max_check:
        check(size, ratio, outcome["alpha"], folder)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": rss, "disk_bytes": peak[0], **outcome}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e7], help="samples")
    parser.add_argument("--ratio", type=float, default=0.5, help="sample_keep_ratio")
    parser.add_argument("--memory", default="1GB", help="memory limit of DuckDB")
    parser.add_argument("--workers", type=int, default=2, help="threads of DuckDB, processes of the other way")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for files, some 90 bytes a sample")
    parser.add_argument("--check", type=float, default=1e7, help="compare with a selection in memory up to this size")
    parser.add_argument("--one", action="store_true", help="measure DuckDB here and print JSON")
    arguments = parser.parse_args()
    for size in map(int, arguments.sizes):
        if arguments.one:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                given = (arguments.memory, arguments.workers, Path(folder), int(arguments.check))
                print(json.dumps(measure(size, arguments.ratio, *given)), flush=True)
            continue
        own = [*sys.argv[1:], "--one", "--sizes", str(size)]
        by_duckdb = json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.selection.out_of_core", *own], stdout=-1, check=True
            ).stdout
        )
        setting = Setting(
            size, "distributed", False, arguments.ratio, MAX_IN_MEMORY_SAMPLES, arguments.workers, arguments.folder
        )
        distributed = measure_apart(setting)
        if distributed["outcome"]["alpha"] != by_duckdb["alpha"]:
            sys.exit(f"the two ways differ at {size:,} samples")
        print(json.dumps({"samples": size, "duckdb": by_duckdb, "distributed": distributed}), flush=True)


if __name__ == "__main__":
    main()
