"""Types of a pruned step: the selection of rows with their masks, and the batches to train on.

The loss of a pruned batch is the sum over its remaining tokens, divided by their number over all ranks and micro-
batches. So a rank with few or no rows has the weight of its tokens, and gradients equal those of one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from qtune_service.selection.plane import Thresholds
from qtune_service.training.batch_layout import IGNORED, Batch, Rows
from qtune_service.training.metrics import StepRecord


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, num_tokens: int, *, num_ranks: int = 1) -> torch.Tensor:
    """Return the summed NLL of the tokens over `num_tokens`, in nats: logits (B, T, V), unshifted labels (B, T) -> ().

    num_tokens: trained tokens of the whole step. num_ranks: ranks over which gradients are averaged (DDP, FSDP). The
    loss is scaled by it, so that the mean is the gradient of the whole step.
    """
    shifted = labels[:, 1:].to(logits.device)
    flat = logits[:, :-1].flatten(0, 1).float()
    total = cross_entropy(flat, shifted.flatten(), ignore_index=IGNORED, reduction="sum")
    return total * (num_ranks / max(num_tokens, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Selection of the S rows of this rank, and the record of the global batch."""

    rows: Rows
    """Input rows with the final masks; all 0 for a dropped row."""
    is_kept: NDArray[np.bool_]  # (S,)
    quadrants: NDArray[np.int8]  # (S,) 1..4; 0 where a row was not scored, as in warm-up
    mean_nll: NDArray[np.float64]  # (S,) nats; NaN where a row was not scored
    mean_entropy: NDArray[np.float64]  # (S,) nats; NaN where a row was not scored
    record: StepRecord

    @property
    def kept(self) -> NDArray[np.int64]:
        """Return the indices of the kept rows."""
        return np.flatnonzero(self.is_kept)

    @property
    def thresholds(self) -> Thresholds:
        """Return the thresholds of the global batch."""
        return self.record.thresholds

    @property
    def loss_masks(self) -> list[NDArray[np.int8]]:
        """Return the final mask of each row, (T_i,)."""
        return np.split(self.rows.loss_mask, self.rows.offsets[1:-1])


@dataclass(frozen=True, slots=True, eq=False)
class PrunedStep:
    """Batches to train on in a step."""

    batches: list[dict[str, Any]]
    """The same number as given, with all kept rows, which may come from other ranks."""
    choice: Choice
    num_tokens: int
    """Trained tokens of the whole step, over all ranks and batches."""
    num_ranks: int

    @property
    def record(self) -> StepRecord:
        """Return thresholds, counts and times of the global batch."""
        return self.choice.record

    @property
    def batch(self) -> dict[str, Any]:
        """Return the only batch."""
        (only,) = self.batches
        return only

    def loss(self, logits: torch.Tensor, batch: Batch | None = None) -> torch.Tensor:
        """Return the loss of a batch, by default the only one, as a part of the step's loss: logits (B, T, V) -> ()."""
        labels = (self.batch if batch is None else batch)["labels"]
        return next_token_loss(logits, labels, self.num_tokens, num_ranks=self.num_ranks)
