"""Tiny models and batches for tests of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

VOCAB = 97


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """Return a Llama of two layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(num_key_value_heads=2, initializer_range=0.3, **{"vocab_size": VOCAB, **sizes, **changes})
    return LlamaForCausalLM(config)


def ragged(num_rows: int, seed: int = 0, longest: int = 24) -> dict[str, list[list[int]]]:
    """Rows of random tokens of several lengths, with masks of several spans."""
    random = np.random.default_rng(seed)
    ids, masks = [], []
    for _ in range(num_rows):
        length = int(random.integers(6, longest + 1))
        ids.append(random.integers(1, VOCAB, length).tolist())
        mask = (random.random(length) < 0.7).astype(int)
        mask[-1] = 1
        masks.append(mask.tolist())
    return {"input_ids": ids, "loss_mask": masks}


def padded(rows: dict[str, list[list[int]]], *, left: bool = False) -> dict[str, torch.Tensor]:
    """Return the rows as padded tensors."""
    width = max(map(len, rows["input_ids"]))
    ids, labels, attention = (torch.full((len(rows["input_ids"]), width), fill) for fill in (0, -100, 0))
    for i, (row, mask) in enumerate(zip(rows["input_ids"], rows["loss_mask"], strict=True)):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], attention[i, place] = torch.tensor(row), 1
        labels[i, place] = torch.tensor([t if m else -100 for t, m in zip(row, mask, strict=True)])
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def packed(rows: dict[str, list[list[int]]]) -> dict[str, torch.Tensor]:
    """Return the rows packed end to end in one line."""
    flat = [token for row in rows["input_ids"] for token in row]
    labels = [
        token if on and at else -100
        for row, mask in zip(rows["input_ids"], rows["loss_mask"], strict=True)
        for at, (token, on) in enumerate(zip(row, mask, strict=True))
    ]
    positions = [at for row in rows["input_ids"] for at in range(len(row))]
    return {name: torch.tensor([values]) for name, values in
            (("input_ids", flat), ("labels", labels), ("position_ids", positions))}  # fmt: skip


def exact_means(model: Any, rows: dict[str, list[list[int]]]) -> NDArray[np.float64]:
    """Mean NLL and entropy of each row by a float64 softmax over all logits, one row at a time: (S, 2)."""
    means = []
    for row, mask in zip(rows["input_ids"], rows["loss_mask"], strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), -1)
        on = torch.tensor(mask[1:]) == 1
        nll = -log_p.gather(-1, ids[0, 1:, None])[on, 0]
        entropy = -(log_p.exp() * log_p).sum(-1)[on]
        means.append([float(nll.mean()), float(entropy.mean())])
    return np.array(means)
