"""One run: the same optimizer, schedule, warm-up and number of trained rows a step, whatever the method.

A dynamic method is shown `rows / keep` candidates at each step and trains on those that it chooses; a static one
chooses once, from all rows, with the model that warm-up left, and goes on with that model. So the two differ in nothing
but when they look. Scored tokens and the process's CPU time (one thread, hence the seconds of an idle machine) are
counted apart from those of measuring.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from benchmarks.quality.catalogue import model_of
from benchmarks.quality.choosing import chooser
from benchmarks.quality.measures import measure
from benchmarks.quality.model import logits_of, parameters
from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import IGNORED, KINDS, Examples, Task

RAMP = 0.05
FLOOR = 0.1
"""The learning rate rises over the first share of steps, then falls by a cosine to this share of it."""


class Draws:
    """Rows of a pool in random order, again and again."""

    def __init__(self, pool: NDArray[np.int64], seed: int) -> None:
        self._pool, self._random = pool, np.random.default_rng(seed)
        self._queue = np.empty(0, np.int64)

    def next(self, count: int) -> NDArray[np.int64]:
        """Return the next `count` rows."""
        while len(self._queue) < count:
            self._queue = np.concatenate((self._queue, self._random.permutation(self._pool)))
        drawn, self._queue = self._queue[:count], self._queue[count:]
        return drawn


class Run:
    """A model on its way."""

    def __init__(self, spec: RunSpec, task: Task) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.task, self.model = spec, task, model_of(spec, task)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), spec.learning_rate, (0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.data, self.places = task.train, np.arange(len(task.train))
        self.weights = torch.ones(len(task.train))
        self.draws = Draws(self.places, spec.seed + 1)
        self.choose = chooser(spec)
        self.cost = {"cpu_s": 0.0, "scored_tokens": 0, "trained_tokens": 0, "trained_rows": 0}
        self.kept = np.zeros(len(KINDS), np.int64)

    def train(self) -> dict[str, Any]:
        """All steps, measured on the way. Returns what is to be written down."""
        spec, curve = self.spec, []
        for step in self.until([*range(spec.eval_every, spec.steps, spec.eval_every), spec.steps]):
            tests = {name: measure(self.model, examples) for name, examples in self.task.tests.items()}
            curve.append({"step": step, **self.cost, "tests": tests})
        kept = dict(zip(KINDS, (self.kept / max(self.kept.sum(), 1)).tolist(), strict=True))
        return {"spec": spec.to_json(), "kept": kept, "curve": curve, "parameters": parameters(self.model)}

    def until(self, stops: Sequence[int]) -> Iterator[int]:
        """Train, and halt after each of some numbers of steps."""
        spec = self.spec
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: pace(step / spec.steps))
        for step in range(max(stops)):
            began_s = time.process_time()
            self._learn(*self._rows_of(step), is_counted=step >= spec.warmup)
            schedule.step()
            self.cost["cpu_s"] += time.process_time() - began_s
            if step + 1 in stops:
                yield step + 1

    def _rows_of(self, step: int) -> tuple[Examples, NDArray[np.int64], Any]:
        """Rows of a step, their places in the data, and weights."""
        spec, is_warm = self.spec, step >= self.spec.warmup
        if spec.mode == "static" and step == spec.warmup:
            self._choose_once()
        is_shown_more = spec.mode == "dynamic" and spec.method != "random" and (is_warm or spec.method == "q-tuning")
        drawn = self.draws.next(round(spec.rows / spec.keep) if is_shown_more else spec.rows)
        rows = self.data.take(drawn)
        if not is_shown_more or self.choose is None:
            return rows, self.places[drawn], self.weights[torch.from_numpy(drawn)]
        chosen = self.choose(self.model, rows)
        self.cost["scored_tokens"] += rows.num_tokens if is_warm else 0
        kept = rows.take(chosen.places)
        return Examples(kept.ids, chosen.labels, kept.real), drawn[chosen.places], chosen.weights

    def _choose_once(self) -> None:
        """Choose rows once by a look at all of them, for the rest of the run."""
        if self.choose is None:
            return
        chosen = self.choose(self.model, self.data)
        self.cost["scored_tokens"] += 0 if self.spec.method == "random" else self.data.num_tokens
        kept = self.data.take(chosen.places)
        self.data, self.places = Examples(kept.ids, chosen.labels, kept.real), chosen.places
        self.weights = chosen.weights
        self.draws = Draws(np.arange(len(kept)), self.spec.seed + 2)

    def _learn(self, rows: Examples, places: NDArray[np.int64], weights: Any, *, is_counted: bool) -> None:
        loss = weighted_loss(logits_of(self.model, rows.ids), rows.labels, weights)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.cost["trained_tokens"] += rows.num_tokens
        self.cost["trained_rows"] += len(rows)
        if is_counted:
            self.kept += np.bincount(self.task.kinds[places], minlength=len(KINDS))


def pace(done: float) -> float:
    """Return the factor of the learning rate after a share of the run."""
    if done < RAMP:
        return done / RAMP + 1e-3
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (done - RAMP) / (1 - RAMP)))


def weighted_loss(logits: Any, labels: Any, weights: Any) -> Any:
    """Mean NLL of trained tokens, each by its row's weight: logits (B, T, V), labels (B, T), weights (B,)."""
    shifted = labels[:, 1:]
    each = cross_entropy(logits[:, :-1].transpose(1, 2), shifted, ignore_index=IGNORED, reduction="none")
    return (each.sum(1) * weights).sum() / ((shifted != IGNORED).sum(1) * weights).sum().clamp(min=1)


def quiet() -> None:
    """One thread, and no line a step."""
    torch.set_num_threads(1)
    logging.getLogger("qtune_service.training").setLevel(logging.WARNING)
