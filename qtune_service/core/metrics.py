"""What is measured: token scores of a sample, and their means.

All logarithms are natural, so NLL and entropy are in nats. A position is scored when the loss mask is 1 and it
is not position 0, which has no prediction. Token arrays hold the scored tokens only, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sample:
    """One tokenised conversation. `loss_mask[0]` is 0."""

    input_ids: NDArray[np.int32]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) 1 = the trainer would train on this token


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of the n scored tokens of one sample."""

    nll: NDArray[np.float32]  # (n,) nats
    entropy: NDArray[np.float32]  # (n,) nats, over the full vocabulary
