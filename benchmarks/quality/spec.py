"""What a run is: a task, a way to choose rows, a seed. Runs with equal fields are the same run, and are made once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One training run. Every field but the seed is part of what is compared."""

    task: str
    method: str = "random"
    """`random` (all of the data in random order, where dynamic), `all-candidates`, `q-tuning`, or a baseline with its
    order, as `perplexity-highest`; see choosing.py."""
    mode: str = "dynamic"
    """`dynamic` chooses from fresh rows at each step; `static` once, from all rows, after warm-up."""
    seed: int = 0
    keep: float = 0.5
    """sample_keep_ratio"""
    token_ratio: float = 1.0
    """token_keep_ratio, of Q-Tuning"""
    token_strategy: str = "neighbor"
    min_tokens: int = 1
    """min_tokens_to_prune, of Q-Tuning"""
    warmup: int = 300
    """First steps, on random rows, of every method."""
    steps: int = 2000
    rows: int = 32
    """Rows trained on at each step. They are chosen from rows / keep."""
    noise: str = "uniform"
    noise_rate: float = 0.3
    trivial_rate: float = 0.4
    learning_rate: float = 3e-3
    width: int = 64
    layers: int = 2
    eval_every: int = 200
    train_rows: int = 20_000
    """Of planted data."""

    @property
    def data(self) -> RunSpec:
        """Return the part of the spec that runs on the same data have in common."""
        return RunSpec(
            self.task,
            seed=self.seed,
            noise=self.noise,
            noise_rate=self.noise_rate,
            trivial_rate=self.trivial_rate,
            train_rows=self.train_rows,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
