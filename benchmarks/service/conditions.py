"""Compare questions to an output by a child process, as in the service, with the same in this process.

Both answer each question in turn, so that what else the machine does meets both. Times are of the whole answer: samples
found, read, with their tokens as text, and turned into plain data; of the child also the way there and back as JSON.
The last line is the row count of an uploaded Parquet file. Start-up is from the first request to the first answer.

    python -m benchmarks.service.conditions --samples 1e5 --rounds 30
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.service.queries import make_output
from qtune_service.ingest.upload_checks import rows_of_file
from qtune_service.output.query import Selection
from qtune_service.server.questions import worker
from qtune_service.server.questions.client import Questions

MEMORY_BYTES = 3 << 29
QUESTIONS: dict[str, Selection] = {
    "first page": Selection(limit=10),
    "perplexity > 50": Selection(where="perplexity > 50", limit=10),
    "category = 'chess' and num_tokens < 10, by -perplexity": Selection(
        where="category = 'chess' and num_tokens < 10", sort="-perplexity", limit=10
    ),
    "Q2, by borderline": Selection(quadrant="Q2", sort="borderline", limit=10),
    "text LIKE '%seven pens seven pens%'": Selection(where="text LIKE '%seven pens seven pens%'", limit=10),
    "100 samples": Selection(limit=100),
}


def compare(
    name: str, here: Callable[[], object], child: Callable[[], object], rounds: int, questions: Questions
) -> str:
    """Measure both in turn, and return a line of the table."""
    times, cpu = np.empty((2, rounds)), np.empty((2, rounds))
    for i in range(-2, rounds):  # the first two are not counted
        for row, ask in enumerate((here, child)):
            started, used = time.perf_counter(), cpu_s(questions)
            ask()
            if i >= 0:
                times[row, i], cpu[row, i] = time.perf_counter() - started, cpu_s(questions) - used
    (a50, b50), (a95, b95) = (1000 * np.quantile(times, [0.5, 0.95], axis=1)).tolist()
    a_cpu, b_cpu = (1000 * cpu.mean(axis=1)).tolist()
    shown = "".join(f" | {value:.1f}" for value in (a50, a95, b50, b95))
    return f"| {name}{shown} | {b50 / a50:.2f} | {a_cpu:.0f} | {b_cpu:.0f} |"


def cpu_s(questions: Questions) -> float:
    """Return the processor seconds of this process and of the child, of which one waits."""
    times = [psutil.Process(pid).cpu_times() for pid in questions.pids]
    return time.process_time() + sum(of.user + of.system for of in times)


def main() -> None:
    """Make an output, and query it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e5)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the output, about 500 bytes a sample")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = f"{folder}/out"
        make_output(root, int(arguments.samples))
        measure(root, Path(folder), arguments.rounds)


def measure(root: str, folder: Path, rounds: int) -> None:
    """Print the table."""
    questions = Questions(MEMORY_BYTES)
    started = time.perf_counter()
    questions.samples(root, "1", Selection(limit=1))
    start_s = time.perf_counter() - started
    print("| question | here p50 ms | p95 | child p50 ms | p95 | ratio of p50 | here CPU ms | child CPU ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, selection in QUESTIONS.items():
        asked = {field: getattr(selection, field) for field in selection.__slots__}
        line = compare(
            name,
            lambda asked=asked: worker.samples(root=root, version="1", selection=asked),
            lambda selection=selection: questions.samples(root, "1", selection),
            rounds,
            questions,
        )
        print(line, flush=True)
    path = folder / "upload.parquet"
    pq.write_table(pa.table({f"c{i}": ["x"] * 1000 for i in range(10)}), path)
    print(
        compare(
            "rows of an uploaded Parquet file",
            lambda: rows_of_file("upload.parquet", path),
            lambda: questions.count_rows("upload.parquet", path),
            rounds,
            questions,
        )
    )
    child = psutil.Process(questions.pids[0])  # the other one has looked at the file alone
    memory = child.memory_full_info()
    print(f"\nstart-up and first answer: {start_s:.2f} s")
    print(f"a child: {memory.rss / 2**20:.0f} MiB resident, of them {memory.uss / 2**20:.0f} MiB its own")
    questions.close()


if __name__ == "__main__":
    main()
