"""Measure rows per second and peak memory of every export, as a Markdown table.

The output that is exported is made here: short conversations with made-up scores, pruned by the real method, in
`--shards` shards. Each export runs in a process of its own, so that its peak resident memory is its own; `before` is
that of the process when it has imported everything, and rows/s are without the start. Analysis files are for small
jobs, so they are made of an output of at most ANALYSIS_ROWS kept rows.

    python -m benchmarks.scale.exports --rows 1e6
"""

from __future__ import annotations

import argparse
import json
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

from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.export.run import FORMATS, export
from qtune_service.export.writers import Options
from qtune_service.output.columns import final_masks, list_column, row_sums
from qtune_service.output.layout import Output, part_path
from qtune_service.pipeline.shard_selection import SampleLabels
from qtune_service.pipeline.shard_tables import pruned_rows, quadrant_rows
from qtune_service.samples import sample_means
from qtune_service.selection.plane import Quadrant
from qtune_service.storage import file_io

REPO = Path(__file__).resolve().parents[2]
TOKENIZER = REPO / "examples" / "demo" / "model" / "tokenizer.json"
PROMPT, ANSWER = (8, 25), (10, 60)  # tokens, from and to
KEEP_RATIO = 0.5
ANALYSIS_ROWS = 5_000
PACK_LENGTH = 2048
QUESTION = "Where in the valley can I find a dalox, and what does it live on?"


def make_output(root: Path, num_kept: int, num_shards: int) -> None:
    """Write a finished output with about so many kept rows: half of the samples, quadrants in equal parts."""
    output = Output(str(root))
    spec = JobSpec(
        input=InputSpec(paths=("made-up.jsonl",)),
        model=ModelSpec(name="made-up"),
        prune=PruneSpec(sample_keep_ratio=KEEP_RATIO),
        output=OutputSpec(path=str(root)),
    )
    file_io.write_bytes(output.at("tokenizer", "tokenizer.json"), TOKENIZER.read_bytes())
    per_shard = round(num_kept / KEEP_RATIO / num_shards)
    parts = [_write_shard(output, spec, shard, per_shard) for shard in range(num_shards)]
    counts = {name: sum(part["counts"][name] for part in parts) for name in parts[0]["counts"]}
    before, after = (sum(part[name] for part in parts) for name in ("before", "after"))
    file_io.write_json(output.at("summary_statistics.json"), {"stage1": counts, "stage2": {}})
    manifest = {
        "version": "0",
        "spec": spec.model_dump(mode="json"),
        "engine": {"name": "made-up", "version": "0", "dtype": "float32"},
        "counts": counts | {"pruned": counts["scored"] - counts["kept"], "rejected": 0, "read": counts["scored"]},
        "tokens": {"scored": 2 * before, "before": before, "after": after},
        "thresholds": {"alpha": 0.5},
        "rejected_reasons": {},
        "scoring": {
            "shards": {str(shard): per_shard for shard in range(num_shards)},
            "own_columns": {"id": "id", "messages": "messages"},
            "category_column": None,
        },
        "files": [
            {"path": part_path("pruned", i), "rows": part["counts"]["kept"], "bytes": 0, "sha256": "0" * 64}
            for i, part in enumerate(parts)
        ],
    }
    file_io.write_json(output.at("manifest.json"), manifest)


def _write_shard(output: Output, spec: JobSpec, shard: int, num_samples: int) -> dict[str, Any]:
    assert spec.prune is not None
    rng = np.random.default_rng(shard)
    scores = _scores(rng, shard, num_samples)
    labels = (np.arange(num_samples) % 4 + 1).astype(np.int8)
    selected = SampleLabels(labels, (labels == Quadrant.Q2) | (labels == Quadrant.Q4), *rng.random((2, num_samples)))
    masks = final_masks(scores, labels, selected.kept, np.arange(num_samples), spec.prune, ())
    pruned = pruned_rows(scores, masks, selected, {}, None)
    for name, table in (("scores", scores), ("quadrants", quadrant_rows(scores, selected)), ("pruned", pruned)):
        file_io.write_table(output.at(part_path(name, shard)), table)
    counts = {f"Q{label}": int(np.sum(labels == label)) for label in range(1, 5)}
    return {
        "counts": counts | {"kept": pruned.num_rows, "scored": num_samples},
        "before": int(scores["num_tokens"].to_numpy()[selected.kept].sum()),
        "after": int(row_sums(masks)[selected.kept].sum()),
    }


def _scores(rng: np.random.Generator, shard: int, num_samples: int) -> pa.Table:
    prompts, answers = (rng.integers(*bounds, num_samples) for bounds in (PROMPT, ANSWER))
    sizes: NDArray[np.int64] = prompts + answers
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    trained = np.concatenate([[0], np.cumsum(answers)])
    mask = np.arange(offsets[-1]) >= np.repeat(offsets[:-1] + prompts, sizes)
    nll, entropy = rng.exponential(1.0, (2, int(trained[-1]))).astype(np.float32)
    mean_nll = sample_means(nll, trained)
    ids = [f"{shard:04}-{i:08}" for i in range(num_samples)]
    messages = [
        [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": f"{'It lives on barley. ' * (i % 9)}{i}"},
        ]
        for i in range(num_samples)
    ]
    return pa.table(
        {
            "sample_id": ids,
            "source": ["made-up.jsonl"] * num_samples,
            "line": np.arange(1, num_samples + 1),
            "truncated": np.zeros(num_samples, np.bool_),
            "mean_nll": mean_nll,
            "perplexity": np.exp(mean_nll),
            "mean_entropy": sample_means(entropy, trained),
            "num_tokens": answers.astype(np.int32),
            "input_ids": list_column(rng.integers(0, 1000, offsets[-1]), offsets, pa.int32()),
            "loss_mask": list_column(mask.astype(np.int8), offsets, pa.int8()),
            "nll": list_column(nll, trained, pa.float32()),
            "entropy": list_column(entropy, trained, pa.float32()),
            "id": ids,
            "messages": messages,
        }
    )


def run_one(output: str, name: str, folder: str) -> dict[str, float]:
    """Run one export in this process."""
    before_kib, begun_s = peak_kib(), time.perf_counter()
    done = export(output, name, folder, Options(pack_length=PACK_LENGTH if name == "megatron-bridge" else None))
    seconds = time.perf_counter() - begun_s
    sizes = {"bytes": done.num_bytes, "files": len(done.files)}
    return {"seconds": seconds, "before_kib": before_kib, "peak_kib": peak_kib(), **sizes}


def peak_kib() -> int:
    """Return the peak resident memory of this process. getrusage's figure includes the parent's peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def measure(output: Path, name: str, folder: Path) -> dict[str, float]:
    """Run one export in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale.exports", "--one", str(output), name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Make the outputs, export each form of them, and print the table."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--rows", type=float, default=1e6, help="kept rows")
    arguments.add_argument("--shards", type=int, default=40)
    arguments.add_argument("--folder", type=Path, help="for the outputs; a temporary one by default")
    arguments.add_argument("--only", nargs="*", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT")
    arguments.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.one:
        print(json.dumps(run_one(*asked.one)))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        work = Path(folder)
        few = min(int(asked.rows), ANALYSIS_ROWS)
        make_output(work / "all", int(asked.rows), asked.shards)
        make_output(work / "few", few, min(asked.shards, 4))
        print("| `--to` | kept rows | s | rows/s | files | MiB written | peak MiB | of that before |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name in asked.only:
            source, rows = (work / "few", few) if name == "analysis" else (work / "all", int(asked.rows))
            found = measure(source, name, work / "export")
            print("| " + " | ".join([f"`{name}`", f"{rows:,}", *_cells(found, rows)]) + " |", flush=True)


def _cells(found: dict[str, float], rows: int) -> list[str]:
    speed, written = rows / found["seconds"], found["bytes"] / 2**20
    peak, before = found["peak_kib"] / 1024, found["before_kib"] / 1024
    return [
        f"{found['seconds']:.1f}", f"{speed:,.0f}", f"{found['files']:.0f}", f"{written:,.1f}", f"{peak:,.0f}",
        f"{before:,.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
