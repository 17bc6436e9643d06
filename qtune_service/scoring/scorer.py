"""The contract between the pipeline and an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from qtune_service.samples import Sample, TokenScores


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a scorer runs on; written to the manifest and shown by `qtune doctor`."""

    name: str
    version: str
    device: str
    dtype: str
    architecture: str
    max_model_len: int
    vocab_size: int
    reason: str = ""
    """Why this engine: what `auto` found, or that it was asked for."""
    head: str = ""
    """How hidden states become scores, and why so: by a kernel, by blocks of logits, over shards; see head.py."""
    batches: str = ""
    """`packed`, or `padded` and why; of the reference engine."""


Watch: TypeAlias = Callable[[int], bool]
"""Called now and then with the tokens scored so far in a call; true asks to stop."""


def never(_tokens: int) -> bool:
    """The `Watch` that never asks to stop."""
    return False


class InterruptedScoring(Exception):  # noqa: N818 - no error: a watch asked for it
    """Scoring was stopped by its watch. `scores`: index of a sample in the call -> its scores, for those at hand."""

    def __init__(self, scores: Mapping[int, TokenScores]) -> None:
        super().__init__(scores)
        self.scores = scores


class Scorer(Protocol):
    """One loaded model. Not thread-safe; one a process."""

    @property
    def info(self) -> EngineInfo:
        """What the scorer runs on."""
        ...

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score samples of at most `info.max_model_len` tokens, in the order given.

        The result does not depend on the order or the grouping of samples beyond rounding. A sample without
        scored tokens yields empty arrays. Raises whatever the model raises; never returns a made-up value,
        though a score may be non-finite where the model's logits are. Raises InterruptedScoring where `watch` asks
        to stop.
        """
        ...

    def close(self) -> None:
        """Free the model. Idempotent."""
        ...
