"""Measure scoring on a GPU in one command: `make bench-gpu`, or `python -m benchmarks.scoring.gpu`.

It measures the matrix-multiplication peak, then random-weight models of Qwen2.5-0.5B's and Qwen2.5-7B's shapes (the
output head shares the embedding's weights) on the reference engine, and on vLLM where that is installed: tokens/s and
the share of the peak, counting only the arithmetic that scoring needs. Then each shape's output head apart: blocks of
logits against the kernel, for speed, memory and error to float64. Markdown goes to stdout, all figures to --json.

The 7B shape needs 16 GB of disk in --work, about 20 GB of GPU memory, and is the one with a goal: 0.60 of the peak.

    python -m benchmarks.scoring.gpu --json gpu.json
    python -m benchmarks.scoring.gpu --device cpu --tiny  # the same code on a CPU, toy sizes: figures mean nothing
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scoring.material import SHAPES, Shape, encode, make_model, save_samples, write_records
from benchmarks.scoring.measure import flops_needed, measure_peak

if TYPE_CHECKING:
    from qtune_service.samples import Sample

GOALS = {"7b": 0.60}  # of the GEMM peak
GPU_SHAPES = {
    "0.5b": SHAPES["0.5b"],
    "7b": Shape(hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18_944, vocab=152_064),  # Qwen2.5-7B's
}
TOY_SHAPES = {"toy": Shape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=8192)}
NUM_SAMPLES = {"0.5b": 2000, "7b": 600, "toy": 6}  # ten seconds or more on an H100
WARM_UP_SAMPLES = 64
HEAD_ROWS, TOY_ROWS = 8192, 20
PEAK_SIZES = ((8192, 8192, 8192), (16_384, 3584, 18_944), (16_384, 18_944, 3584), (16_384, 8192, 8192))
TOY_PEAK_SIZES = ((256, 256, 256),)
NO_GPU = 2
PACKAGES = ("torch", "triton", "transformers", "vllm", "flash-attn")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine on one model. `error` is empty for an engine that ran."""

    model: str
    engine: str
    tokens: int
    score_s: float = 0.0
    tokens_per_s: float = 0.0
    peak_share: float = 0.0
    gpu_bytes: int | None = None
    head: str = ""
    batches: str = ""
    error: str = ""


def measure_reference(name: str, model: Path, samples: Sequence[Sample], flops: float, peak: float) -> EngineRow:
    """Score all samples on the reference engine in this process."""
    import torch

    from qtune_service.config import EngineSpec, ModelSpec
    from qtune_service.scoring.reference import ReferenceScorer

    num_tokens = sum(len(sample.input_ids) for sample in samples)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        scorer = ReferenceScorer(ModelSpec(name=str(model)), EngineSpec(name="reference"))
        scorer.score(samples[:WARM_UP_SAMPLES])
        started_s = time.perf_counter()
        scorer.score(samples)  # returns when the scores are on the CPU, so the GPU has ended
        score_s = time.perf_counter() - started_s
    except torch.OutOfMemoryError as error:
        return EngineRow(name, "reference", num_tokens, error=f"out of GPU memory: {str(error).partition('. ')[0]}")
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    info = scorer.info
    scorer.close()
    speed, share = num_tokens / score_s, flops / score_s / peak
    return EngineRow(name, "reference", num_tokens, score_s, speed, share, used, info.head, info.batches)


def measure_vllm(name: str, setting: Any, samples: Sequence[Sample], flops: float, peak: float) -> EngineRow:
    """Score all samples on vLLM in a process of its own, since that holds its memory for life."""
    from benchmarks.scoring.processes import run_route

    num_tokens = sum(len(sample.input_ids) for sample in samples)
    outcome = run_route("engine", setting, samples)
    if outcome.error:
        return EngineRow(name, "vllm", num_tokens, error=outcome.error.strip().splitlines()[-1])
    speed, share = num_tokens / outcome.score_s, flops / outcome.score_s / peak
    return EngineRow(name, "vllm", num_tokens, outcome.score_s, speed, share)


def measure_engines(name: str, shape: Shape, arguments: argparse.Namespace, peak: float) -> list[EngineRow]:
    """Measure the engines on one model."""
    from benchmarks.scoring.processes import Setting

    folder = arguments.work / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: making the model and its samples ...", file=sys.stderr, flush=True)
    model, data = make_model(shape, folder / "model"), folder / "data.jsonl"
    write_records(data, arguments.samples or NUM_SAMPLES[name])
    samples = encode(data, model, shape)
    save_samples(folder / "samples.npz", samples)
    flops = flops_needed(shape, samples)
    print(f"{name}: reference engine ...", file=sys.stderr, flush=True)
    rows = [measure_reference(name, model, samples, flops, peak)]
    if arguments.device == "cuda" and "vllm" in installed():
        print(f"{name}: vLLM ...", file=sys.stderr, flush=True)
        setting = Setting(model, "bfloat16", os.cpu_count() or 1, data, folder / "samples.npz", folder)
        rows.append(measure_vllm(name, setting, samples, flops, peak))
    return rows


def render_engines(rows: Sequence[EngineRow]) -> str:
    """Return the table, with the goal where a model has one."""
    lines = [
        "| model | engine | tokens | tokens/s | of GEMM peak | goal | scoring s | GPU memory GiB | head | batches |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.model} | {row.engine} | {row.tokens:,} | {row.error} | | | | | | |")
            continue
        goal = f"{GOALS[row.model]:.0%}" if row.model in GOALS else ""
        memory = "" if row.gpu_bytes is None else f"{row.gpu_bytes / 2**30:.2f}"
        lines.append(
            f"| {row.model} | {row.engine} | {row.tokens:,} | {row.tokens_per_s:,.0f} | {row.peak_share:.0%} | {goal} "
            f"| {row.score_s:.1f} | {memory} | {row.head} | {row.batches} |"
        )
    return "\n".join(lines)


def installed() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    return {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}


def machine(device: str) -> dict[str, Any]:
    """Describe the machine and the versions."""
    import torch

    where: dict[str, Any] = {"device": platform.processor() or platform.machine(), "python": platform.python_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        where |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        where |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
    return {**where, **installed()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and print everything; returns the figures."""
    import torch

    from benchmarks.scoring.heads import measure_heads, render_heads

    device = torch.device(arguments.device)
    where = machine(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    peak = measure_peak("bfloat16", TOY_PEAK_SIZES if arguments.tiny else PEAK_SIZES)
    print(f"\nbf16 GEMM peak: {peak.flops_per_s / 1e12:.4g} TFLOP/s at {' x '.join(map(str, peak.size))}\n", flush=True)
    shapes = TOY_SHAPES if arguments.tiny else {name: GPU_SHAPES[name] for name in arguments.models}
    engines = [
        row for name, shape in shapes.items() for row in measure_engines(name, shape, arguments, peak.flops_per_s)
    ]
    print(f"{render_engines(engines)}\n", flush=True)
    rows = TOY_ROWS if arguments.tiny else HEAD_ROWS
    heads = [row for name, shape in shapes.items() for row in measure_heads(name, shape, torch.bfloat16, device, rows)]
    print(render_heads(heads, peak.flops_per_s), flush=True)
    return {
        "machine": where,
        "peak": asdict(peak),
        "engines": [asdict(row) for row in engines],
        "heads": [asdict(row) for row in heads],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--models", nargs="+", choices=tuple(GPU_SHAPES), default=list(GPU_SHAPES))
    parser.add_argument("--samples", type=int, help=f"number of samples; by default {NUM_SAMPLES}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    work = Path(tempfile.gettempdir()) / "qtune-benchmark-gpu"
    parser.add_argument("--work", type=Path, default=work, help="models (made once), data and logs")
    found = parser.parse_args(arguments)
    if found.device == "cpu" and not found.tiny:
        parser.error("--device cpu needs --tiny: the real sizes take days there")
    return found


def main(command_line: Sequence[str] | None = None) -> int:
    """Measure; 2 without a GPU, 1 where an engine failed."""
    arguments = parse(command_line)
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: the kernel then runs in Python
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            f"No CUDA GPU: torch {torch.__version__} sees none. Run this on a machine with one, with a CUDA build of "
            "torch (pip install 'qtune-service[gpu]'), or try the code with --device cpu --tiny.",
            file=sys.stderr,
        )
        return NO_GPU
    figures = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(any(row["error"] for row in figures["engines"]))


if __name__ == "__main__":
    sys.exit(main())
