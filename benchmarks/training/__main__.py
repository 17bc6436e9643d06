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
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtune_service.training import QTuningPruner


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and a batch."""

    name: str
    rows: int = 16
    longest: int = 256
    vocab: int = 16_000
    spread: bool = True
    """True for rows of an eighth of the longest length and more, False for rows of equal length."""
    hidden: int = 256
    layers: int = 4
    checkpointing: bool = False


BASE = Shape("base")
SHAPES = (
    BASE,
    replace(BASE, name="all rows as long", spread=False),
    replace(BASE, name="gradient checkpointing", checkpointing=True),
    replace(BASE, name="4 rows", rows=4),
    replace(BASE, name="64 rows", rows=64),
    replace(BASE, name="64 tokens", longest=64),
    replace(BASE, name="1,024 tokens, 4 rows", longest=1024, rows=4),
    replace(BASE, name="vocabulary of 1,000", vocab=1000),
    replace(BASE, name="vocabulary of 152,000, 4 rows", vocab=152_000, rows=4),
)
GPU = Shape("0.4B, bf16", rows=64, longest=1024, vocab=152_000, hidden=1024, layers=24)
WAYS = ("step", "forward", "score", "naive", "pruned")
KEEP = 0.25


@dataclass(frozen=True, slots=True)
class Bench:
    """A model in training, and a batch for it."""

    model: Any
    optimizer: torch.optim.Optimizer
    batch: dict[str, torch.Tensor]
    pruner: QTuningPruner

    @classmethod
    def of(cls, shape: Shape, device: str) -> Bench:
        """Make a model and a batch with random weights and tokens, since neither changes what is computed."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=4 * shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden // 64,
            num_key_value_heads=shape.hidden // 64,
            tie_word_embeddings=True,
        )
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = LlamaForCausalLM(config).to(device, dtype).train()
        if shape.checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        return cls(model, optimizer, _batch(shape, device), QTuningPruner(KEEP, 0.7, is_quiet=True))

    # --- ways

    def step(self) -> None:
        """Run a step on the whole batch."""
        self._train(self.model(**self.batch).loss)

    def forward(self) -> None:
        """Run the forward pass of a step and drop its graph."""
        self.model(**self.batch)

    def score(self) -> None:
        """Run scoring and selection alone."""
        self.pruner.prune(self.model, self.batch)

    def naive(self) -> None:
        """Compute full logits in float32, softmax and entropy."""
        with torch.no_grad():
            logits = self.model(input_ids=self.batch["input_ids"], attention_mask=self.batch["attention_mask"]).logits
            log_p = torch.log_softmax(logits.float(), -1)
            -log_p[:, :-1].gather(-1, self.batch["input_ids"][:, 1:, None])
            -(log_p.exp() * log_p).sum(-1)

    def pruned(self) -> None:
        """Run a step on the rows that the pruner keeps."""
        step = self.pruner.prune(self.model, self.batch)
        self._train(self.model(**step.batch, num_items_in_batch=step.num_tokens).loss)

    def share_read(self) -> float:
        """Return the share of the batch's tokens in kept rows. It differs from the share of rows where these are
        few.
        """
        kept = self.pruner.prune(self.model, self.batch).batch
        return float(kept["attention_mask"].sum() / self.batch["attention_mask"].sum())

    def _train(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _batch(shape: Shape, device: str) -> dict[str, torch.Tensor]:
    """Return right-padded rows. The first 40% of each is a prompt."""
    random = np.random.default_rng(0)
    shortest = shape.longest // 8 if shape.spread else shape.longest
    lengths = np.exp(random.uniform(np.log(shortest), np.log(shape.longest), shape.rows)).round().astype(int)
    lengths[0] = shape.longest
    places = np.arange(shape.longest)
    real = places < lengths[:, None]
    ids = random.integers(1, shape.vocab, real.shape) * real
    labels = np.where(real & (places >= 0.4 * lengths[:, None]), ids, -100)
    arrays = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
    return {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}


def timed(run: Callable[[], None], device: str) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def times(shape: Shape, rounds: int, device: str) -> tuple[dict[str, float], float]:
    """Return the median seconds of each way, run in turn, and the share of tokens that a pruned step trains on."""
    bench = Bench.of(shape, device)
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            seconds = timed(getattr(bench, way), device)
            if number:  # the first round warms up
                runs[way].append(seconds)
    return {way: statistics.median(seconds) for way, seconds in runs.items()}, bench.share_read()


def memory(shape: Shape, way: str, threads: int, device: str, answer: Any) -> None:
    """Put the MiB that a way adds to a model with its optimizer into `answer`, in a process of its own."""
    torch.set_num_threads(threads)
    bench = Bench.of(shape, device)
    for parameter in bench.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bench.optimizer.step()
    bench.optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        getattr(bench, way)()
        answer.put(torch.cuda.max_memory_allocated() / 2**20 - before)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is held
    before = _peak_mib()
    getattr(bench, way)()
    answer.put(_peak_mib() - before)


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def grown(shape: Shape, way: str, threads: int, device: str) -> float:
    """Return the MiB that a way adds, from another process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=memory, args=(shape, way, threads, device, answer))
    process.start()
    found: float = answer.get()
    process.join()
    return found


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
