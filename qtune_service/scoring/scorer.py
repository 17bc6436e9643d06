"""Interface of an engine (`Scorer`), deduplication of samples, and isolation of failing samples.

NLL and entropy of a token depend only on the tokens before it. So a sequence that occurs several times, with equal or
different loss masks, or as a prefix of a longer one (as the turns of a conversation), is run once for the union of the
masks. Scores are returned in the given order.

A failing group of samples is halved until the failing samples are isolated: about 2 k log2(n) extra calls for k failing
samples among n. A dead engine fails for every sample, so the engine must score a trivial sample before a sample is
rejected.
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
    """Description of a scorer, for the manifest and `qtune doctor`."""

    name: str
    version: str
    device: str
    dtype: str
    architecture: str
    max_model_len: int
    vocab_size: int
    reason: str = ""
    """The reason for this engine: the finding of `auto`, or an explicit request."""
    head: str = ""
    """Method from hidden states to scores, and its reason: kernel, blocks of logits, or shards; see logits.py."""
    batches: str = ""
    """Reference engine: `packed`, or `padded` with the reason."""


Watch: TypeAlias = Callable[[int], bool]
"""Called repeatedly with the number of tokens scored so far in a call. True requests a stop."""


def never(_tokens: int) -> bool:
    """Never request a stop (a `Watch`)."""
    return False


class InterruptedScoring(Exception):  # noqa: N818 - requested by a watch, not an error
    """The watch stopped scoring. `scores`: sample index in the call -> scores, for finished samples."""

    def __init__(self, scores: Mapping[int, TokenScores]) -> None:
        super().__init__(scores)
        self.scores = scores


class Scorer(Protocol):
    """A loaded model. Not thread-safe, one per process."""

    @property
    def info(self) -> EngineInfo:
        """Return the engine information."""
        ...

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score samples of at most `info.max_model_len` tokens, in the given order.

        The result depends on order and grouping of samples only by rounding. A sample without scored tokens yields
        empty arrays. Raises the errors of the model. A score is never invented, but is non-finite where the model's
        logits are. Raises InterruptedScoring if `watch` requests a stop.
        """
        ...

    def close(self) -> None:
        """Free the model. Idempotent."""
        ...


Scores = NDArray[np.float32]  # (n, 2): NLL and entropy of n scored tokens, nats
UNSCORED = -1.0
"""Value of an NLL that was not computed. A computed NLL is never negative."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A token sequence that is no prefix of another one, with all scored positions of its samples."""

    input_ids: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int64]  # (n,) ascending, all >= 1


def check_samples(samples: Sequence[Sample], info: EngineInfo) -> None:
    """Raise DataError for the first invalid sample."""
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
    """Return the trained positions that have a prediction: (n,)."""
    positions: NDArray[np.int64] = np.flatnonzero(sample.loss_mask).astype(np.int64)
    return positions[positions > 0]


def distinct_prompts(samples: Sequence[Sample]) -> tuple[list[Prompt], list[int]]:
    """Return the prompts to run in lexicographic order, and for each sample the index of the prompt that contains it.

    The order makes shared prefixes adjacent and does not depend on the order of the samples.
    """
    keys = [sample.input_ids.astype(">i4").tobytes() for sample in samples]  # bytes sort as the tokens do
    members: dict[bytes, list[int]] = {}
    longest = b""
    for key, i in sorted(zip(keys, range(len(keys)), strict=True), reverse=True):
        if not members or not longest.startswith(key):  # a continuation directly follows its prefix
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
    """Merge samples of one sequence, of which the first is the longest."""
    positions = [scored_positions(sample) for sample in samples]
    merged = positions[0] if len(positions) == 1 else np.unique(np.concatenate(positions))
    return Prompt(input_ids=samples[0].input_ids, positions=merged)


def scores_of(sample: Sample, prompt: Prompt, scores: Scores) -> TokenScores:
    """Select a sample's scores from those of its prompt (n, 2)."""
    own = scores[np.searchsorted(prompt.positions, scored_positions(sample))]
    return TokenScores(nll=np.ascontiguousarray(own[:, 0]), entropy=np.ascontiguousarray(own[:, 1]))


def spans_of(positions: NDArray[np.int64]) -> list[int]:
    """Return runs of consecutive positions as [start, end, start, end, ...], ends exclusive."""
    if len(positions) == 0:
        return []
    breaks = np.flatnonzero(np.diff(positions) != 1)
    starts = positions[np.concatenate(([0], breaks + 1))]
    ends = positions[np.concatenate((breaks, [len(positions) - 1]))] + 1
    spans: list[int] = np.stack((starts, ends), 1).ravel().tolist()
    return spans


def score_isolating(scorer: Scorer, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores | str]:
    """Score samples in the given order. A sample that cannot be scored yields the reason as a string.

    Raises EngineError for a failure of the engine itself, and InterruptedScoring if `watch` requests a stop.
    """
    if not samples:
        return []
    try:
        return list(scorer.score(samples, watch))
    except (EngineError, InterruptedScoring):
        raise  # the engine itself has failed
    except Exception as error:  # noqa: BLE001 - a model may raise any error
        if len(samples) == 1:
            _check_alive(scorer, error)
            return [_reason(error)]
    middle = len(samples) // 2
    # Halves run to their end: their indices differ from those of the call, so partial results could not be kept.
    return score_isolating(scorer, samples[:middle]) + score_isolating(scorer, samples[middle:])


def _check_alive(scorer: Scorer, failure: Exception) -> None:
    """Score a two-token sample. Raises EngineError if even that fails."""
    probe = Sample(input_ids=np.zeros(2, np.int32), loss_mask=np.array([0, 1], np.int8))
    try:
        scorer.score([probe])
    except Exception as error:
        raise EngineError(
            f"The scoring engine is dead: it fails even for a trivial sample: {_reason(error)}",
            f"The first failure was: {_reason(failure)}",
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, with the type of foreign errors."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, QTuneError) else f"{type(error).__name__}: {text}".rstrip(": ")
