"""Tasks by their names, and the models that learn them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from benchmarks.quality.gsm8k import gsm8k, small_llama
from benchmarks.quality.model import TinyDecoder
from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import SYMBOLS, Task, addition, mixed, rewriting

BUILDERS = {
    "addition": addition,
    "addition-plain": addition,
    "rewrite": rewriting,
    "long": rewriting,
    "mixed": mixed,
    "gsm8k": gsm8k,
}


def task_of(spec: RunSpec) -> Task:
    """Return the data of a run. Consecutive runs on the same data share them."""
    return _built(spec.data)


@lru_cache(maxsize=4)
def _built(spec: RunSpec) -> Task:
    return BUILDERS[spec.task](spec)


def model_of(spec: RunSpec, task: Task) -> Any:
    """Return a fresh model, or one that was trained on stories."""
    if spec.task == "gsm8k":
        return small_llama()
    return TinyDecoder(len(SYMBOLS), task.train.ids.shape[1], spec.width, spec.layers)
