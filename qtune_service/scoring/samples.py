"""Samples as an engine needs them: checked, each distinct sequence once, and put back in the given order.

A sequence that occurs several times, with equal or different loss masks, or as the beginning of a longer one, as the
turns of a conversation do, is run once for the union of the masks: NLL and entropy of a token depend on the tokens
before it and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo

Scores = NDArray[np.float32]  # (n, 2): NLL and entropy of n scored tokens, nats
UNSCORED = -1.0
"""In place of an NLL that was not computed: a computed one is never negative."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A token sequence that begins no other one, with all positions that some sample scores."""

    input_ids: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int64]  # (n,) ascending, all >= 1


def check_samples(samples: Sequence[Sample], info: EngineInfo) -> None:
    """Raise DataError for the first sample that the engine must not see."""
    for i, sample in enumerate(samples):
        if problem := _problem(sample, info):
            where = f"sample {i} of {len(samples)}: " if len(samples) > 1 else ""
            raise DataError(f"{where}{problem}")


def _problem(sample: Sample, info: EngineInfo) -> str:
    ids, mask = sample.input_ids, sample.loss_mask
    if len(ids) != len(mask):
        return f"{len(ids)} tokens, but a loss mask of {len(mask)}"
    if len(ids) == 0:
        return "no tokens"
    if len(ids) > info.max_model_len:
        return f"{len(ids)} tokens, and the limit is {info.max_model_len} (max_model_len)"
    if ids.min() < 0 or ids.max() >= info.vocab_size:
        wrong = int(ids[(ids < 0) | (ids >= info.vocab_size)][0])
        return f"token id {wrong} is outside the model's vocabulary of {info.vocab_size}; is the tokenizer the model's?"
    return ""


def scored_positions(sample: Sample) -> NDArray[np.int64]:
    """Positions that have a prediction and are trained on: (n,)."""
    positions: NDArray[np.int64] = np.flatnonzero(sample.loss_mask).astype(np.int64)
    return positions[positions > 0]


def distinct_prompts(samples: Sequence[Sample]) -> tuple[list[Prompt], list[int]]:
    """Return the sequences to run in lexicographic order, and for each sample the index of the one that begins with it.

    The order puts shared prefixes next to each other and does not depend on the order of the samples.
    """
    keys = [sample.input_ids.astype(">i4").tobytes() for sample in samples]  # bytes compare as the tokens do
    members: dict[bytes, list[int]] = {}
    longest = b""
    for key, i in sorted(zip(keys, range(len(keys)), strict=True), reverse=True):
        if not members or not longest.startswith(key):  # what continues a sequence comes right after it
            longest = key
        members.setdefault(longest, []).append(i)
    index = [0] * len(samples)
    prompts = []
    for rank, (_, some) in enumerate(sorted(members.items())):
        prompts.append(_merge([samples[i] for i in some]))
        for i in some:
            index[i] = rank
    return prompts, index


def _merge(samples: Sequence[Sample]) -> Prompt:
    """The longest comes first."""
    positions = [scored_positions(sample) for sample in samples]
    merged = positions[0] if len(positions) == 1 else np.unique(np.concatenate(positions))
    return Prompt(input_ids=samples[0].input_ids, positions=merged)


def scores_of(sample: Sample, prompt: Prompt, scores: Scores) -> TokenScores:
    """Pick a sample's own tokens out of its prompt's scores (n, 2)."""
    own = scores[np.searchsorted(prompt.positions, scored_positions(sample))]
    return TokenScores(nll=np.ascontiguousarray(own[:, 0]), entropy=np.ascontiguousarray(own[:, 1]))


def spans_of(positions: NDArray[np.int64]) -> list[int]:
    """Runs of consecutive positions as [start, end, start, end, ...], ends exclusive."""
    if len(positions) == 0:
        return []
    breaks = np.flatnonzero(np.diff(positions) != 1)
    starts = positions[np.concatenate(([0], breaks + 1))]
    ends = positions[np.concatenate((breaks, [len(positions) - 1]))] + 1
    spans: list[int] = np.stack((starts, ends), 1).ravel().tolist()
    return spans
