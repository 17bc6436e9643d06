"""Measure time and memory of `qtune inspect` over a large output, as a Markdown table.

The output is made up: log-normal scores, ranked and labelled by the real method, in shards as a job writes them, with
token columns, a category and a text of its own for each sample. Each command runs in a process of its own, started
anew, so that its seconds are those that a user waits. A process inherits the peak memory of the one that starts it, so
this one stays small: the output is made by another.

    python -m benchmarks.service.queries --samples 1e6
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.output.columns import list_column, quadrant_names
from qtune_service.output.layout import Output
from qtune_service.selection.thresholds import Selection, select
from qtune_service.storage import file_io

MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo" / "model"
SHARD_ROWS = 10_000
PROMPT_TOKENS, MEAN_TRAINED = 20, 20
CATEGORIES = ("algebra", "biology", "chess", "drama", "energy", "farming", "games", "history")
WORDS = ("the", "answer", "is", "forty", "two", "because", "each", "box", "holds", "seven", "pens", "and", "so", "on")
TEXT_WORDS = 60

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--json",),
    ("--where", "perplexity > 50", "--limit", "5"),
    ("--where", "category = 'chess' and num_tokens < 10", "--sort", "-perplexity", "--limit", "5"),
    ("--quadrant", "Q2", "--sort", "borderline", "--limit", "5"),
    ("--quadrant", "Q1", "--sort", "typical", "--limit", "5"),
    ("--where", "text LIKE '%seven pens seven pens%'", "--limit", "5"),
    ("--by", "category"),
    ("--sample", "LAST"),
    ("--sort", "-entropy", "--columns", "id,entropy", "--limit", "100000", "--json"),
)


def make_output(root: str, num_samples: int) -> None:
    """Write scores/, quadrants/, tokenizer/ and a manifest."""
    rng = np.random.default_rng(0)
    nll, other = rng.standard_normal((2, num_samples))
    nll, entropy = np.exp(0.6 * nll), np.exp(0.4 * nll + 0.3 * other)
    lengths = np.clip(rng.poisson(MEAN_TRAINED, num_samples), 1, None)
    chosen = select(nll, entropy, sample_keep_ratio=0.4)
    output, files, shards = Output(root), [], {}
    for shard, start in enumerate(range(0, num_samples, SHARD_ROWS)):
        at = slice(start, min(start + SHARD_ROWS, num_samples))
        for folder, table in (
            ("scores", _scores(start, nll[at], entropy[at], lengths[at], rng)),
            ("quadrants", _quadrants(start, chosen, at)),
        ):
            files.append(output.write_part(folder, shard, table).to_dict())
        shards[str(shard)] = at.stop - at.start
    shutil.copytree(MODEL, Path(root) / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    file_io.write_json(output.at("manifest.json"), _manifest(root, chosen, shards, files))


def _ids(start: int, size: int) -> Any:
    return pa.array([f"0000-{start + i + 1:08d}" for i in range(size)])


def _scores(
    start: int,
    nll: NDArray[np.float64],
    entropy: NDArray[np.float64],
    lengths: NDArray[np.int64],
    rng: np.random.Generator,
) -> pa.Table:
    size = len(nll)
    trained = np.concatenate([[0], np.cumsum(lengths)])
    offsets = trained + PROMPT_TOKENS * np.arange(size + 1)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    spread = rng.gamma(1.0, 1.0, (2, trained[-1]))
    text = [" ".join(words) for words in np.array(WORDS)[rng.integers(0, len(WORDS), (size, TEXT_WORDS))].tolist()]
    return pa.table(
        {
            "sample_id": _ids(start, size),
            "source": pa.repeat(pa.scalar("/data/made-up.jsonl"), size),
            "line": pa.array(start + 1 + np.arange(size), pa.int64()),
            "truncated": pa.repeat(pa.scalar(False), size),
            "mean_nll": pa.array(nll),
            "perplexity": pa.array(np.exp(nll)),
            "mean_entropy": pa.array(entropy),
            "num_tokens": pa.array(lengths, pa.int32()),
            "input_ids": list_column(rng.integers(0, 1024, offsets[-1]), offsets, pa.int32()),
            "loss_mask": list_column((within >= PROMPT_TOKENS).astype(np.int8), offsets, pa.int8()),
            "nll": list_column(spread[0] * np.repeat(nll, lengths), trained, pa.float32()),
            "entropy": list_column(spread[1] * np.repeat(entropy, lengths), trained, pa.float32()),
            "id": pa.array([f"made-up-{start + i}" for i in range(size)]),
            "category": pa.array(np.array(CATEGORIES)[rng.integers(0, len(CATEGORIES), size)].tolist()),
            "text": pa.array(text),
        }
    )


def _quadrants(start: int, chosen: Selection, at: slice) -> pa.Table:
    return pa.table(
        {
            "sample_id": _ids(start, at.stop - at.start),
            "quadrant": quadrant_names(chosen.labels[at]),
            "error_rank": pa.array(chosen.p(at)),
            "entropy_rank": pa.array(chosen.e(at)),
            "kept": pa.array(chosen.is_kept[at]),
        }
    )


def _manifest(root: str, chosen: Selection, shards: dict[str, int], files: list[dict[str, Any]]) -> dict[str, Any]:
    spec = JobSpec(
        input=InputSpec(paths=("/data/made-up.jsonl",), category_field="category"),
        model=ModelSpec(name=str(MODEL)),
        output=OutputSpec(path=root),
    )
    own = {name: name for name in ("id", "category", "text")}
    return {
        "spec": spec.model_dump(mode="json"),
        "thresholds": {"alpha": chosen.thresholds.alpha},
        "scoring": {"shards": shards, "own_columns": own, "category_column": "category"},
        "files": files,
    }


def measure(command: tuple[str, ...], root: str, num_samples: int) -> tuple[float, int]:
    """Return seconds and peak resident bytes of `qtune inspect`, or exit where it fails."""
    flags = [f"0000-{num_samples:08d}" if flag == "LAST" else flag for flag in command]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([sys.executable, "-m", "qtune_service.cli", "inspect", root, *flags], stdout=said)
        _, status, usage = os.wait4(child.pid, 0)
        said.seek(0)
        if status or not said.read().strip():
            sys.exit(f"qtune inspect {' '.join(flags)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    """Read the command line, make the output, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e6)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the output, about 500 bytes a sample")
    parser.add_argument("--make", help="only make the output, there")
    arguments = parser.parse_args()
    num_samples = int(arguments.samples)
    if arguments.make:
        make_output(arguments.make, num_samples)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = str(Path(folder) / "out")
        make = [sys.executable, "-m", "benchmarks.service.queries", "--samples", str(num_samples), "--make", root]
        subprocess.run(make, check=True)
        size = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
        print(f"{num_samples:,} samples, {size / 2**20:,.0f} MiB in {-(-num_samples // SHARD_ROWS):,} shards\n")
        print("| `qtune inspect OUT` ... | seconds | peak RSS MiB |\n|---|---:|---:|")
        for command in COMMANDS:
            seconds, peak_bytes = measure(command, root, num_samples)
            shown = " ".join(f'"{flag}"' if " " in flag else flag for flag in command)
            print(f"| `{shown}` | {seconds:.1f} | {peak_bytes / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
