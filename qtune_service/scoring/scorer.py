"""Interface of an engine (`Scorer`), deduplication of samples, and isolation of failing samples.

NLL and entropy of a token depend only on the tokens before it. So a sequence that occurs several times, with equal or
different loss masks, or as a prefix of a longer one (as the turns of a conversation), is run once for the union of the
masks. Scores are returned in the given order.

A call has three steps (`ScoringCall`): prepare, run, finish. Only `run` needs the engine, so that the next call can be
prepared, and the last one finished, in other threads beside it. A scorer without these steps is called as a whole.

A failing group of samples is halved until the failing samples are isolated: about 2 k log2(n) extra calls for k failing
samples among n. A dead engine fails for every sample, so the engine must score a trivial sample before a sample is
rejected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qtune_service.errors import DataError, EngineError, ModelError, QTuneError
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
class FlatScores:
    """Scores of S samples in one buffer: those of sample s are values[offsets[s]:offsets[s + 1]]."""

    values: Scores  # (L, 2)
    offsets: NDArray[np.int64]  # (S + 1,)

    @classmethod
    def of(cls, scores: Sequence[TokenScores]) -> FlatScores:
        """Return the scores of samples as one buffer."""
        empty = np.empty(0, np.float32)
        columns = [np.concatenate([empty, *(getattr(s, name) for s in scores)]) for name in ("nll", "entropy")]
        return cls(np.stack(columns, 1), _offsets([len(s.nll) for s in scores]))

    def rows(self) -> list[TokenScores]:
        """Return the scores of each sample."""
        nll, entropy = np.ascontiguousarray(self.values[:, 0]), np.ascontiguousarray(self.values[:, 1])
        return [TokenScores(nll[low:high], entropy[low:high]) for low, high in pairwise(self.offsets.tolist())]


@runtime_checkable
class SteppedScorer(Scorer, Protocol):
    """A scorer whose calls have three steps. `score` is all of them."""

    def prepare(self, samples: Sequence[Sample]) -> Any:
        """Return what `run` needs for a call. Any thread may call it, also while another call runs."""
        ...

    def run(self, prepared: Any, watch: Watch = never) -> Any:
        """Score what `prepare` returned. Raise as `score` does."""
        ...

    def finish(self, prepared: Any, result: Any) -> FlatScores:
        """Return the scores of a call's samples from the result of `run`. Any thread may call it, as `prepare`."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """A token sequence that is no prefix of another one, with all scored positions of its samples."""

    input_ids: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int64]  # (n,) ascending, all >= 1


def check_samples(samples: Sequence[Sample], info: EngineInfo) -> None:
    """Raise DataError for the first invalid sample."""
    lengths = _lengths([sample.input_ids for sample in samples])
    if len(samples) > 1 and np.array_equal(lengths, _lengths([sample.loss_mask for sample in samples])):
        ids = np.concatenate([sample.input_ids for sample in samples])
        fits = lengths.min() > 0 and lengths.max() <= info.max_model_len
        if fits and ids.min() >= 0 and ids.max() < info.vocab_size:
            return
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


def flat_positions(samples: Sequence[Sample]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the scored positions of all samples in one array (L,), and the offsets of the samples in it (S + 1,)."""
    lengths = _lengths([sample.loss_mask for sample in samples])
    starts = np.cumsum(lengths) - lengths
    trained = np.concatenate([np.empty(0, np.int8), *(sample.loss_mask for sample in samples)]) != 0
    trained[starts[lengths > 0]] = False
    at = np.flatnonzero(trained)
    offsets = np.searchsorted(at, np.append(starts, len(trained))).astype(np.int64)
    return at - np.repeat(starts, np.diff(offsets)), offsets


def _lengths(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.fromiter(map(len, arrays), np.int64, len(arrays))


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    offsets: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
    return offsets


def _rows(flat: NDArray[Any], offsets: NDArray[np.int64]) -> list[NDArray[Any]]:
    return [flat[low:high] for low, high in pairwise(offsets.tolist())]


def distinct_prompts(samples: Sequence[Sample]) -> tuple[list[Prompt], list[int]]:
    """Return the prompts to run in lexicographic order, and for each sample the index of the prompt that contains it.

    The order makes shared prefixes adjacent and does not depend on the order of the samples.
    """
    return _distinct(samples, _rows(*flat_positions(samples)))


def _distinct(samples: Sequence[Sample], positions: Sequence[NDArray[np.int64]]) -> tuple[list[Prompt], list[int]]:
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
        own = [positions[i] for i in some]
        merged = own[0] if len(own) == 1 else np.unique(np.concatenate(own))
        prompts.append(Prompt(input_ids=samples[some[0]].input_ids, positions=merged))  # the first is the longest
        for i in some:
            index[i] = rank
    return prompts, index


@dataclass(frozen=True, slots=True)
class PreparedSamples:
    """The samples of a call, and the prompts that are run for them."""

    samples: Sequence[Sample]
    prompts: Sequence[Prompt]
    index: Sequence[int]
    """Sample -> its prompt."""
    positions: NDArray[np.int64]  # (L,) scored positions of all samples
    offsets: NDArray[np.int64]  # (S + 1,)

    @classmethod
    def of(cls, samples: Sequence[Sample], info: EngineInfo) -> PreparedSamples:
        """Check and sort samples. Raises DataError for the first invalid one."""
        check_samples(samples, info)
        positions, offsets = flat_positions(samples)
        prompts, index = _distinct(samples, _rows(positions, offsets))
        return cls(samples, prompts, index, positions, offsets)

    def select(self, values: Scores) -> FlatScores:
        """Return the scores of the samples. values: those of all prompts in order, (sum of their n, 2)."""
        index = np.array(self.index, np.int64)
        counts = np.fromiter((len(prompt.positions) for prompt in self.prompts), np.int64, len(self.prompts))
        first = np.cumsum(counts) - counts
        own = np.diff(self.offsets)
        if len(self.prompts) == len(self.samples):  # each sample has a prompt of its own, and all its scores
            rows = np.repeat(first[index] - self.offsets[:-1], own) + np.arange(len(self.positions))
            return FlatScores(values[rows], self.offsets)
        width = 1 + int(self.positions.max(initial=0))
        of_prompts = np.concatenate([self.positions[:0], *(prompt.positions for prompt in self.prompts)])
        keys = np.repeat(np.arange(len(counts)) * width, counts) + of_prompts  # ascending
        wanted = np.repeat(index * width, own) + self.positions
        return FlatScores(values[np.searchsorted(keys, wanted)], self.offsets)

    def finished(self, scores: Mapping[int, Scores]) -> dict[int, TokenScores]:
        """Return the scores of the samples whose prompt has some. scores: prompt -> (n, 2)."""
        return {
            k: scores_of(sample, self.prompts[i], scores[i])
            for k, (sample, i) in enumerate(zip(self.samples, self.index, strict=True))
            if i in scores
        }


def scores_of(sample: Sample, prompt: Prompt, scores: Scores) -> TokenScores:
    """Select a sample's scores from those of its prompt (n, 2)."""
    own = scores[np.searchsorted(prompt.positions, scored_positions(sample))]
    return TokenScores(nll=np.ascontiguousarray(own[:, 0]), entropy=np.ascontiguousarray(own[:, 1]))


def spans_of(positions: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Return for each of several ascending arrays its runs as [start, end, start, end, ...], ends exclusive."""
    offsets = _offsets([len(one) for one in positions])
    flat = np.concatenate([np.empty(0, np.int64), *positions])
    is_start = np.append(True, np.diff(flat) != 1)[: len(flat)]
    is_start[offsets[:-1][np.diff(offsets) > 0]] = True
    starts = np.flatnonzero(is_start)
    last = np.append(starts[1:], len(flat))[: len(starts)] - 1
    bounds: list[int] = np.stack((flat[starts], flat[last] + 1), 1).ravel().tolist()
    cuts = 2 * np.searchsorted(starts, offsets)
    return [bounds[low:high] for low, high in pairwise(cuts.tolist())]


# --- calls


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of a call's samples."""

    scores: FlatScores
    problems: Mapping[int, str]
    """Sample that could not be scored -> the reason. It has no scores."""


@dataclass(slots=True)
class ScoringCall:
    """One call of a scorer. Only `run` needs the engine; see the module."""

    scorer: Scorer
    samples: Sequence[Sample]
    _prepared: Any = None
    _result: Any = None
    _outcomes: list[TokenScores | str] | None = field(default=None)

    @classmethod
    def prepare(cls, scorer: Scorer, samples: Sequence[Sample]) -> ScoringCall:
        """Prepare a call. Invalid samples are found by `run`."""
        call = cls(scorer, samples)
        if isinstance(scorer, SteppedScorer) and samples:
            with contextlib.suppress(DataError):
                call._prepared = scorer.prepare(samples)
        return call

    def run(self, watch: Watch = never) -> None:
        """Score the samples. A sample that cannot be scored costs no other one its scores.

        Raises EngineError for a failure of the engine itself, and InterruptedScoring if `watch` requests a stop.
        """
        if self._prepared is None or not isinstance(self.scorer, SteppedScorer):
            self._outcomes = score_isolating(self.scorer, self.samples, watch)
            return
        try:
            self._result = self.scorer.run(self._prepared, watch)
        except (EngineError, ModelError, InterruptedScoring):
            raise  # the engine itself has failed
        except Exception as error:  # noqa: BLE001 - a model may raise any error
            self._outcomes = _isolate(self.scorer, self.samples, error)

    def finish(self) -> Outcomes:
        """Return the scores, in the order of the samples."""
        if self._outcomes is None:
            assert isinstance(self.scorer, SteppedScorer)
            return Outcomes(self.scorer.finish(self._prepared, self._result), {})
        none = TokenScores(np.empty(0, np.float32), np.empty(0, np.float32))
        problems = {i: outcome for i, outcome in enumerate(self._outcomes) if isinstance(outcome, str)}
        return Outcomes(FlatScores.of([none if isinstance(o, str) else o for o in self._outcomes]), problems)


def score_isolating(scorer: Scorer, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores | str]:
    """Score samples in the given order. A sample that cannot be scored yields the reason as a string.

    Raises EngineError for a failure of the engine itself, and InterruptedScoring if `watch` requests a stop.
    """
    if not samples:
        return []
    try:
        return list(scorer.score(samples, watch))
    except (EngineError, ModelError, InterruptedScoring):
        raise  # the engine itself has failed
    except Exception as error:  # noqa: BLE001 - a model may raise any error
        return _isolate(scorer, samples, error)


def _isolate(scorer: Scorer, samples: Sequence[Sample], error: Exception) -> list[TokenScores | str]:
    """Score the halves of a group that failed."""
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
