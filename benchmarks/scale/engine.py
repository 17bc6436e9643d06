"""Provide engines that cost next to nothing, or a known time a token, for `--engine benchmarks.scale.engine:NAME`.

Scores are made of the token ids by a hash, so that they are the same every time and spread over the plane. They mean
nothing; the pipeline around them is what is measured. Nothing is done token by token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo

SECONDS_PER_TOKEN = 20e-6  # 50,000 tokens/s
MULTIPLIERS = (np.uint32(2654435761), np.uint32(2246822519))


class HashScorer:
    """NLL and entropy from 0 to 8 nats of a token and the one before it."""

    def __init__(self, model: ModelSpec, *, seconds_per_token: float) -> None:
        self.info = EngineInfo(
            name="hash",
            version="1",
            device="none",
            dtype="float32",
            architecture="none",
            max_model_len=model.max_model_len or 0,
            vocab_size=0,
            reason="the benchmark asked for it",
        )
        self._seconds_per_token = seconds_per_token

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Score all samples at once."""
        ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.uint32)  # (L,)
        mask = np.concatenate([sample.loss_mask for sample in samples])
        sizes = np.fromiter((len(sample.input_ids) for sample in samples), np.int64, len(samples))
        first = np.cumsum(sizes) - sizes
        mask[first] = 0
        time.sleep(self._seconds_per_token * len(ids))
        counts = np.diff(np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))[np.append(first, len(ids))])
        pairs = (ids + np.roll(ids, 1) * np.uint32(31))[mask != 0]
        nll, entropy = (_spread(pairs * multiplier) for multiplier in MULTIPLIERS)
        cuts = np.cumsum(counts)[:-1]
        return [TokenScores(*pair) for pair in zip(np.split(nll, cuts), np.split(entropy, cuts), strict=True)]

    def close(self) -> None:
        """Do nothing: the scorer holds nothing."""


def _spread(hashed: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return numbers from 0 to 8."""
    return (hashed >> np.uint32(8)).astype(np.float32) * np.float32(8 / (1 << 24))


def at_once(model: ModelSpec, _engine: EngineSpec) -> HashScorer:
    """Build a scorer that costs nothing."""
    return HashScorer(model, seconds_per_token=0.0)


def by_tokens(model: ModelSpec, _engine: EngineSpec) -> HashScorer:
    """Build a scorer that takes SECONDS_PER_TOKEN without using a core, as an accelerator does."""
    return HashScorer(model, seconds_per_token=SECONDS_PER_TOKEN)
