"""A call in three steps gives the scores that a call in one step gives, also for samples that fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.errors import EngineError
from qtune_service.pipeline.shard_tables import problems_of, without_rows
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.choose_engine import CustomScorer
from qtune_service.scoring.scorer import (
    EngineInfo,
    FlatScores,
    Outcomes,
    PreparedSamples,
    Scores,
    ScoringCall,
    Watch,
    distinct_prompts,
    never,
    scored_positions,
    scores_of,
)

INFO = EngineInfo("fake", "1", "cpu", "float32", "FakeForCausalLM", max_model_len=9, vocab_size=9)
POISON = 8


def scores_at(prompt: Any) -> Scores:
    """Return scores that are made of a prompt's tokens and positions."""
    values = prompt.input_ids[prompt.positions] * 100 + prompt.positions
    return np.stack((values, -values), 1).astype(np.float32)


class OneStep:
    """A scorer without steps."""

    info = INFO

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:  # noqa: ARG002 - the contract
        """Score, or fail for the whole call."""
        if any(POISON in sample.input_ids for sample in samples):
            raise ValueError("poison")
        prompts, index = distinct_prompts(samples)
        return [scores_of(s, prompts[i], scores_at(prompts[i])) for s, i in zip(samples, index, strict=True)]

    def close(self) -> None:
        """Do nothing."""


class Stepped(OneStep):
    """The same scorer with steps."""

    def prepare(self, samples: Sequence[Sample]) -> PreparedSamples:
        """Sort."""
        return PreparedSamples.of(samples, INFO)

    def run(self, prepared: PreparedSamples, watch: Watch = never) -> list[Scores]:  # noqa: ARG002 - the contract
        """Score, or fail for the whole call."""
        if any(POISON in prompt.input_ids for prompt in prepared.prompts):
            raise ValueError("poison")
        return [scores_at(prompt) for prompt in prepared.prompts]

    def finish(self, prepared: PreparedSamples, result: list[Scores]) -> FlatScores:
        """Select."""
        return prepared.select(np.concatenate(result))


sample_lists = st.lists(
    st.lists(st.tuples(st.integers(0, POISON), st.integers(0, 1)), min_size=1, max_size=5).map(
        lambda pairs: Sample(np.array([a for a, _ in pairs], np.int32), np.array([b for _, b in pairs], np.int8))
    ),
    max_size=12,
)


def outcomes_of(scorer: Any, samples: Sequence[Sample]) -> Outcomes:
    """Return the outcomes of a call."""
    call = ScoringCall.prepare(scorer, samples)
    call.run()
    return call.finish()


@pytest.mark.parametrize("wrap", [lambda scorer: scorer, lambda scorer: CustomScorer("mine", scorer)])
@given(samples=sample_lists)
def test_steps_change_no_score(wrap: Callable[[Any], Any], samples: list[Sample]) -> None:
    """Each sample has its own scores or the reason why it has none, with steps and without, for any samples."""
    found = [outcomes_of(wrap(scorer), samples) for scorer in (OneStep(), Stepped())]
    assert found[0].problems == found[1].problems
    assert set(found[0].problems) == {i for i, sample in enumerate(samples) if POISON in sample.input_ids}
    for outcomes in found:
        rows = outcomes.scores.rows()
        assert len(rows) == len(samples)
        for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
            at = scored_positions(sample)
            expected = sample.input_ids[at] * 100 + at if i not in outcomes.problems else at[:0]
            assert row.nll.tolist() == expected.tolist()
            assert row.entropy.tolist() == (-expected).tolist()


def test_an_invalid_sample_is_found_by_the_run() -> None:
    """A sample that is too long is rejected with its reason, though the others were prepared with it."""
    long = Sample(np.zeros(10, np.int32), np.ones(10, np.int8))
    good = Sample(np.array([1, 2], np.int32), np.array([0, 1], np.int8))

    class Checked(Stepped):
        def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
            prepared = self.prepare(samples)
            return self.finish(prepared, self.run(prepared, watch)).rows()

    outcomes = outcomes_of(Checked(), [good, long])
    assert outcomes.problems == {1: "10 tokens, and the limit is 9 (max_model_len)"}
    assert outcomes.scores.offsets.tolist() == [0, 1, 1]


def test_wrong_steps_of_a_user_s_scorer_are_refused() -> None:
    """Scores that do not match the tokens never reach the thresholds."""

    class Wrong(Stepped):
        def finish(self, prepared: PreparedSamples, result: list[Scores]) -> FlatScores:
            scores = super().finish(prepared, result)
            return FlatScores(scores.values[1:], np.maximum(scores.offsets - 1, 0))

    samples = [Sample(np.array([1, 2, 3], np.int32), np.array([0, 1, 1], np.int8))] * 2
    with pytest.raises(EngineError, match=r"engine mine gave \(3, 2\) scores with 2 samples, which have 4 in all"):
        outcomes_of(CustomScorer("mine", Wrong()), samples)


def test_samples_without_usable_scores_are_left_out() -> None:
    """A sample that could not be scored, and one with a number that is not finite, have a reason and no rows."""
    values = np.array([[1, 1], [2, np.nan], [3, 3], [np.inf, 4]], np.float32)
    outcomes = Outcomes(FlatScores(values, np.array([0, 1, 1, 3, 4])), {1: "too long"})
    problems = problems_of(outcomes)
    assert problems == {
        1: ("scoring_failed", "too long"),
        2: ("non_finite_score", "1 of 2 tokens have no finite score"),
        3: ("non_finite_score", "1 of 1 tokens have no finite score"),
    }
    left = without_rows(outcomes.scores, problems)
    assert (left.values.tolist(), left.offsets.tolist()) == ([[1.0, 1.0]], [0, 1])
