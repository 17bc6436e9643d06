"""Does what a method keeps teach the right thing at this moment? It is meant to say why a method wins or loses.

A model is trained on random rows. At some steps each method chooses from the same rows, and the gradient on what it
keeps is compared with that on clean rows: cosine 1 is the same direction, 0 none of it. No method trains the model, so
the figures say what each would do with one that has come so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.quality.catalogue import task_of
from benchmarks.quality.choosing import chooser
from benchmarks.quality.model import logits_of
from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import KINDS, Examples
from benchmarks.quality.training import Run, weighted_loss

CANDIDATES = 1024
CHOICES = (
    ("random", 0.5),
    ("q-tuning", 0.5),
    ("q-tuning", 0.125),
    ("perplexity-highest", 0.5),
    ("perplexity-lowest", 0.5),
    ("entropy-highest", 0.5),
)


def agreement(spec: RunSpec, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Return for some steps what each method keeps, and the cosines of its gradient."""
    run = Run(spec, task_of(spec))
    return [{"step": step, **row} for step in run.until(steps) for row in _compared(run)]


def _compared(run: Run) -> Iterator[dict[str, Any]]:
    places = np.random.default_rng(run.spec.seed).permutation(len(run.data))[:CANDIDATES]
    rows, kinds = run.data.take(places), run.task.kinds[places]
    clean = {name: _gradient(run.model, test) for name, test in run.task.tests.items()}
    for method, keep in CHOICES:
        choose = chooser(replace(run.spec, method=method, keep=keep, mode="static"))
        assert choose is not None
        chosen = choose(run.model, rows)
        kept = rows.take(chosen.places)
        found = _gradient(run.model, Examples(kept.ids, chosen.labels, kept.real))
        shares = np.bincount(kinds[chosen.places], minlength=len(KINDS)) / len(kept)
        yield {
            "task": run.spec.task,
            "seed": run.spec.seed,
            "method": method,
            "keep": keep,
            "cosine": {name: float(torch.cosine_similarity(found, each, 0)) for name, each in clean.items()},
            "kept": dict(zip(KINDS, shares.tolist(), strict=True)),
        }


def _gradient(model: Any, examples: Examples) -> Any:
    """All of it, in one row."""
    model.zero_grad()
    weighted_loss(logits_of(model, examples.ids), examples.labels, torch.ones(len(examples))).backward()
    return torch.cat([part.grad.flatten() for part in model.parameters()])
