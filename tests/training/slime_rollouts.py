"""Rollouts in the shape in which slime's actor hands them to its hook, recorded key by key from its sources."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

PER_ROW = ("tokens", "response_lengths", "total_lengths", "loss_masks", "rollout_ids", "rollout_mask_sums", "log_probs",
           "entropy", "rewards", "truncated", "sample_indices")  # fmt: skip


def slime_args(**changes: Any) -> SimpleNamespace:
    """Return the arguments of slime that the plug-in points read."""
    known = {
        "rollout_temperature": 1.0, "rollout_top_p": 1.0, "qkv_format": "thd", "rollout_batch_size": 4,
        "n_samples_per_prompt": 1, "rollout_shuffle": False, "rollout_seed": 42, "save": None, "load": None,
        "q_tuning_sample_keep_ratio": 0.5, "q_tuning_token_keep_ratio": 0.6, "q_tuning_bisect_max_iter": None,
    }  # fmt: skip
    return SimpleNamespace(**{**known, **changes})


def rollout(num_rows: int = 24, seed: int = 0, parts_a_rollout: int = 1) -> dict[str, Any]:
    """Return a whole rollout: prompts, multi-turn responses, and scores of each response token."""
    random = np.random.default_rng(seed)
    responses = random.integers(4, 20, num_rows)
    prompts = random.integers(3, 9, num_rows)
    masks = [(random.random(n) < 0.8).astype(np.int32) for n in responses]
    for mask in masks:
        mask[-1] = 1
    ids = [row // parts_a_rollout for row in range(num_rows)]
    sums = [sum(int(m.sum()) for other, m in zip(ids, masks, strict=True) if other == own) for own in ids]
    return {
        "tokens": [torch.from_numpy(random.integers(0, 99, p + n)) for p, n in zip(prompts, responses, strict=True)],
        "response_lengths": responses.tolist(),
        "total_lengths": (prompts + responses).tolist(),
        "loss_masks": [torch.from_numpy(mask) for mask in masks],
        "rollout_ids": ids,
        "rollout_mask_sums": torch.tensor(sums, dtype=torch.float32),
        "log_probs": [torch.from_numpy(-random.exponential(2, n)).float() for n in responses],
        "entropy": [torch.from_numpy(random.exponential(2, n)).float() for n in responses],
        "rewards": [0.0] * num_rows,
        "truncated": [0] * num_rows,
        "sample_indices": list(range(num_rows)),
        "global_batch_sizes": [num_rows],
        "num_microbatches": [num_rows // 4],
        "micro_batch_indices": [list(range(at, min(at + 4, num_rows))) for at in range(0, num_rows, 4)],
    }


def share(whole: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Return the rows that slime's split gives a data-parallel rank."""
    part = dict(whole)
    for name in PER_ROW:
        values = whole[name]
        part[name] = values[rows] if isinstance(values, torch.Tensor) else [values[row] for row in rows]
    return part
