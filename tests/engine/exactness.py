"""Sequences that are hard for an engine, and their exact scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.samples import Sample, TokenScores

MAX_MODEL_LEN = 512
CHUNK_TOKENS = 96
"""Tokens in one forward pass of the engines under test; most samples are longer."""
NAN_TOKEN = 7
"""The random model's embedding of this token is NaN: from there on, a sample's scores are genuinely non-finite."""


def sample(ids: NDArray[np.int32], *spans: tuple[int, int]) -> Sample:
    """Build a sample whose loss mask is 1 in the given spans."""
    mask = np.zeros(len(ids), np.int8)
    for start, end in spans:
        mask[start:end] = 1
    return Sample(ids, mask)


def hard_cases(vocab_size: int) -> dict[str, list[Sample]]:
    """Return groups of samples, by the reason why they are hard. Token NAN_TOKEN occurs in none."""
    rng = np.random.default_rng(20)

    def tokens(n: int) -> NDArray[np.int32]:
        return rng.integers(NAN_TOKEN + 1, vocab_size, n, dtype=np.int32)

    def after(prefix: NDArray[np.int32], n: int) -> NDArray[np.int32]:
        return np.concatenate((prefix, tokens(n)))

    prompt, aligned = tokens(300), tokens(256)  # 256 is whole cache blocks of any size in use
    opening = after(prompt, 140)  # one prompt with a response start that several samples share
    twin = tokens(200)
    turns = tokens(400)
    return {
        "chunked prefill": [sample(tokens(n), (n // 3, n)) for n in (97, 192, 193, 350)],
        "shared prompts": [sample(after(prompt, n), (300, 300 + n)) for n in (5, 40, 150)],
        "prompts of whole blocks": [sample(after(aligned, n), (256, 256 + n)) for n in (3, 60, 130)],
        "exact duplicates": [sample(twin, (50, 200))] * 3,
        "equal tokens, other masks": [sample(twin, (150, 180)), sample(twin, (10, 60)), sample(twin, (199, 200))],
        "shared response starts": [sample(after(opening, n), (300, 440 + n)) for n in (1, 20, 70)],
        "turns of one conversation": [sample(turns[:n], (n - 60, n)) for n in (100, 250, 400)],
        "one-token responses": [sample(tokens(n), (n - 1, n)) for n in (2, 40, 129, 200)],
        "several spans": [
            sample(tokens(300), (1, 4), (90, 100), (128, 129), (200, 260)),
            Sample(tokens(256), np.arange(256, dtype=np.int8) % 2),
            Sample(tokens(150), np.ones(150, np.int8)),  # position 0 has no prediction
        ],
        "at the length limit": [
            sample(tokens(MAX_MODEL_LEN), (1, MAX_MODEL_LEN)),
            sample(tokens(MAX_MODEL_LEN), (511, 512)),
        ],
        "nothing to score": [sample(tokens(1), (0, 1)), sample(tokens(30)), sample(tokens(20), (0, 1))],
    }


def all_cases(vocab_size: int) -> list[Sample]:
    """Return the samples of all groups, in one list."""
    return [member for group in hard_cases(vocab_size).values() for member in group]


@lru_cache
def _model(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def exact_scores(folder: str, member: Sample) -> TokenScores:
    """Scores from the float64 softmax of the model's full float32 logits, one sample at a time."""
    import torch

    ids = torch.tensor(member.input_ids, dtype=torch.long)
    with torch.inference_mode():
        log_p = _model(folder)(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)  # (T - 1, V)
    scored = torch.tensor(member.loss_mask[1:] == 1)
    nll = -log_p.gather(-1, ids[1:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return TokenScores(nll=nll[scored].float().numpy(), entropy=entropy[scored].float().numpy())


@lru_cache
def exact_cases(folder: str, vocab_size: int) -> dict[str, list[TokenScores]]:
    """Return the exact scores of `hard_cases`."""
    return {name: [exact_scores(folder, member) for member in group] for name, group in hard_cases(vocab_size).items()}


def exact_all(folder: str, vocab_size: int) -> list[TokenScores]:
    """Return the exact scores of `all_cases`."""
    return [scores for group in exact_cases(folder, vocab_size).values() for scores in group]


def difference(a: Sequence[TokenScores], b: Sequence[TokenScores]) -> float:
    """Largest |difference| of any NLL or entropy, in nats; infinite where lengths differ or a value is not finite."""
    if [(len(x.nll), len(x.entropy)) for x in a] != [(len(x.nll), len(x.entropy)) for x in b]:
        return float("inf")
    gaps = [np.abs(u - v) for x, y in zip(a, b, strict=True) for u, v in ((x.nll, y.nll), (x.entropy, y.entropy))]
    gap = np.concatenate(gaps) if gaps else np.zeros(1)
    return float(gap.max(initial=0.0)) if np.isfinite(gap).all() else float("inf")
