"""What a model can do, on clean rows that it has not seen.

Exact match counts answers of which every token, the end too, is the likeliest one after the right tokens before it:
just those that greedy decoding gets right. ECE is of single tokens, in bins of equal width.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.quality.model import logits_of
from benchmarks.quality.tasks import IGNORED, Examples

ECE_BINS = 15
BLOCK = 256


def measure(model: Any, examples: Examples) -> dict[str, float]:
    """Shares and nats: `exact`, `token`, `nll`, `ece`."""
    model.eval()
    with torch.no_grad():
        parts = [_block(model, examples, at) for at in range(0, len(examples), BLOCK)]
    model.train()
    exact = torch.cat([part[0] for part in parts])
    right, sure, nll = (torch.cat([part[i] for part in parts]) for i in (1, 2, 3))
    return {
        "exact": float(exact.float().mean()),
        "token": float(right.mean()),
        "nll": float(nll.mean()),
        "ece": calibration_error(right, sure),
    }


def _block(model: Any, examples: Examples, at: int) -> tuple[Any, ...]:
    """Return for some rows whether each is right, and for their tokens: right, confidence, NLL."""
    labels = examples.labels[at : at + BLOCK, 1:]
    log_p = torch.log_softmax(logits_of(model, examples.ids[at : at + BLOCK])[:, :-1].float(), -1)
    is_trained = labels != IGNORED
    best = log_p.max(-1)
    right = best.indices == labels
    nll = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (right | ~is_trained).all(1), right[is_trained].float(), best.values.exp()[is_trained], nll[is_trained]


def calibration_error(right: Any, sure: Any) -> float:
    """Return the expected calibration error: right (n,) 0 or 1, confidence of the likeliest token (n,)."""
    bins = (sure * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    gap = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bins, (right - sure).double())
    return float(gap.abs().sum() / len(right))
