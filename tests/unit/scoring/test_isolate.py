"""Telling poison samples from a dead engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.errors import DataError, EngineError, ModelError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo, InterruptedScoring, Watch, never, score_isolating

POISON = 666


class FakeScorer:
    """Scores each sample with its first token; fails as told, and counts calls."""

    info = EngineInfo("fake", "1", "cpu", "float32", "FakeForCausalLM", max_model_len=9, vocab_size=999)

    def __init__(self, check: Callable[[Sequence[Sample]], None]) -> None:
        self._check = check
        self.calls = 0

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score, or fail."""
        self.calls += 1
        if watch(0):
            raise InterruptedScoring({})
        self._check(samples)
        return [TokenScores(*[np.full(1, s.input_ids[0], np.float32)] * 2) for s in samples]

    def close(self) -> None:
        """Do nothing."""


def samples_of(tokens: Sequence[int]) -> list[Sample]:
    """Build one two-token sample for each first token."""
    return [Sample(np.array([token, 1], np.int32), np.array([0, 1], np.int8)) for token in tokens]


def refuse_poison(samples: Sequence[Sample]) -> None:
    """Fail for the group if it holds poison."""
    if any(s.input_ids[0] == POISON for s in samples):
        raise ValueError("poison\nwith a trace")


@pytest.mark.parametrize("error", [EngineError("the engine failed"), ModelError("too long for this engine")])
def test_failures_of_the_engine_reject_no_sample(error: Exception) -> None:
    """What the engine or the model cannot do is raised, whichever sample shows it."""

    def fail(_samples: Sequence[Sample]) -> None:
        raise error

    with pytest.raises(type(error)):
        score_isolating(FakeScorer(fail), samples_of([1, 2, 3]))


@given(poisoned=st.lists(st.booleans(), max_size=40))
def test_exactly_the_poison_is_blamed(poisoned: list[bool]) -> None:
    """Every other sample gets its own scores, in order."""
    scorer = FakeScorer(refuse_poison)
    results = score_isolating(scorer, samples_of([POISON if bad else i for i, bad in enumerate(poisoned)]))
    assert len(results) == len(poisoned)
    for i, (bad, result) in enumerate(zip(poisoned, results, strict=True)):
        assert result == "ValueError: poison" if bad else (isinstance(result, TokenScores) and result.nll[0] == i)


def test_one_poison_among_many_costs_few_calls() -> None:
    """Bisection needs about 2 log2(n) calls."""
    scorer = FakeScorer(refuse_poison)
    score_isolating(scorer, samples_of([*range(600), POISON, *range(400)]))
    assert scorer.calls <= 2 * 11 + 1


def test_an_error_of_ours_is_the_reason_as_it_stands() -> None:
    """The package's own messages need no type in front."""

    def refuse(samples: Sequence[Sample]) -> None:
        if any(s.input_ids[0] == POISON for s in samples):
            raise DataError("too long", "Cut it.")

    assert score_isolating(FakeScorer(refuse), samples_of([POISON])) == ["too long"]


def test_a_dead_engine_is_no_sample_s_fault() -> None:
    """An engine that dies half way is reported as dead, with its first failure, and not as poison samples."""
    dead = False

    def die(samples: Sequence[Sample]) -> None:
        nonlocal dead
        dead = dead or any(s.input_ids[0] == POISON for s in samples)
        if dead:
            raise RuntimeError("CUDA error")

    with pytest.raises(EngineError, match=r"dead.*CUDA error"):
        score_isolating(FakeScorer(die), samples_of([1, 2, POISON, 3]))


def test_an_engine_error_is_not_taken_apart() -> None:
    """What the engine itself calls its failure ends the call at once."""

    def give_up(samples: Sequence[Sample]) -> None:
        raise EngineError("no memory")

    scorer = FakeScorer(give_up)
    with pytest.raises(EngineError, match="no memory"):
        score_isolating(scorer, samples_of([1, 2]))
    assert scorer.calls == 1


def test_a_wish_to_stop_is_passed_on() -> None:
    """Scoring that was stopped is nobody's fault and reaches the caller."""
    with pytest.raises(InterruptedScoring):
        score_isolating(FakeScorer(refuse_poison), samples_of([1, 2]), lambda _tokens: True)
