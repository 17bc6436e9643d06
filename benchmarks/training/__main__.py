"""Measure what pruning costs a training step and what it saves: times in one process, memory in one each.

For each shape, on the same batch, in turn:

    step      forward, backward and AdamW on the whole batch, as a trainer does it
    forward   its forward pass with the loss
    score     the pruner: scores, thresholds, masks, the batch of kept rows
    naive     scores as usually written: logits of the padded batch, softmax and entropy over them in float32
    pruned    score, then a step on the kept rows; `read` is the share of tokens that these have

Ratios are of medians over rounds, so a machine that slows down slows all of them. Peak memory is what the process grew
to above the model with its optimizer.

    python -m benchmarks.training [--rounds 5] [--threads 2] [--device cuda]
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.training.steps import GPU, SHAPES, WAYS, grown, times


def main() -> None:
    """Print a table, and each row as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help="a shape's name")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes = (GPU, *SHAPES) if options.device == "cuda" else SHAPES
    print("| shape | step s | forward | score | naive | pruned step | read | MiB: step | score | naive |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for shape in shapes:
        if options.only not in (None, shape.name):
            continue
        t, read = times(shape, options.rounds, options.device)
        mib = {way: grown(shape, way, options.threads, options.device) for way in ("step", "score", "naive")}
        shares = [f"{t[way] / t['step']:.2f}" for way in WAYS[1:]]
        print(f"| {shape.name} | {t['step']:.2f} | {' | '.join(shares)} | {read:.0%} | "
              f"{' | '.join(f'{value:.0f}' for value in mib.values())} |", flush=True)  # fmt: skip
        rows.append({"shape": shape.name, "seconds": t, "read": read, "mib": mib})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
