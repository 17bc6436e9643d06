"""The loss of a pruned batch: a sum over the tokens that are left, divided by their number over all ranks and micro-
batches. So a rank with few rows, or none, weighs as much as its tokens do, and gradients are those of one process.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from qtune_service.training.batch_layout import IGNORED


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, num_tokens: int, *, num_ranks: int = 1) -> torch.Tensor:
    """Sum of the tokens' NLL over `num_tokens`, in nats: logits (B, T, V), unshifted labels (B, T) -> ().

    num_tokens: those in the loss of the whole step. num_ranks: those over which gradients are averaged (DDP, FSDP);
    the loss is that much larger, so that their mean is the gradient of the whole step.
    """
    shifted = labels[:, 1:].to(logits.device)
    flat = logits[:, :-1].flatten(0, 1).float()
    total = cross_entropy(flat, shifted.flatten(), ignore_index=IGNORED, reduction="sum")
    return total * (num_ranks / max(num_tokens, 1))
