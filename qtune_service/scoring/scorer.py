"""The contract between the pipeline and an engine.

Samples as an engine needs them: checked, each distinct sequence once, and put back in the given order.

A sequence that occurs several times, with equal or different loss masks, or as the beginning of a longer one, as the
turns of a conversation do, is run once for the union of the masks: NLL and entropy of a token depend on the tokens
before it and on nothing else.

Find the samples that an engine cannot score, and score all the others.

A group that fails is halved until the failing samples stand alone: about 2 k log2(n) extra calls for k poison samples
among n. An engine that is dead fails for every sample, which is no sample's fault, so before a sample is blamed the
engine must score a trivial one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError, EngineError, QTuneError
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


def score_isolating(scorer: Scorer, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores | str]:
    """Score samples in the order given; a sample that cannot be scored yields the reason as a string.

    Raises EngineError where the engine, and not a sample, is at fault; InterruptedScoring where `watch` asks to stop.
    """
    if not samples:
        return []
    try:
        return list(scorer.score(samples, watch))
    except (EngineError, InterruptedScoring):
        raise  # the engine itself says that it cannot go on
    except Exception as error:  # noqa: BLE001 - an engine raises whatever its model raises
        if len(samples) == 1:
            _check_alive(scorer, error)
            return [_reason(error)]
    middle = len(samples) // 2
    # Parts of a call run to their end: their indices are not the call's, so what they had at a stop could not be kept.
    return score_isolating(scorer, samples[:middle]) + score_isolating(scorer, samples[middle:])


def _check_alive(scorer: Scorer, failure: Exception) -> None:
    """Score a two-token sample, which no working engine refuses."""
    probe = Sample(input_ids=np.zeros(2, np.int32), loss_mask=np.array([0, 1], np.int8))
    try:
        scorer.score([probe])
    except Exception as error:
        raise EngineError(
            f"The scoring engine is dead: it fails even for a trivial sample: {_reason(error)}",
            f"It was first seen to fail with: {_reason(failure)}",
        ) from error


def _reason(error: Exception) -> str:
    """First line of an error's message, with its type where the error is not one of ours."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, QTuneError) else f"{type(error).__name__}: {text}".rstrip(": ")
