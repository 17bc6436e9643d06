"""A decoder as small as the tasks, with nothing in it but what they need: pre-norm, GELU, learned positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

HEADS = 4


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a feed-forward layer, each beside a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_mixing, self.before_thinking = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mixed = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        """(B, T, H) -> (B, T, H)."""
        rows, length, width = x.shape
        heads = self.mix(self.before_mixing(x)).view(rows, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.mixed(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(gelu(self.up(self.before_thinking(x))))


class TinyDecoder(nn.Module):  # type: ignore[misc]
    """Ids (B, T) to logits (B, T, V)."""

    def __init__(self, vocab: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.last, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        for part in (self.tokens, self.places):
            nn.init.normal_(part.weight, std=0.1)

    def forward(self, ids: Any) -> Any:
        """Logits of each place's successor."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.last(x))


def parameters(model: Any) -> int:
    """Return the number of parameters."""
    return sum(part.numel() for part in model.parameters())


def logits_of(model: Any, ids: Any) -> Any:
    """Logits (B, T, V) of this model or of one from transformers."""
    output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits
