"""selection/plane.py: quadrants, labels, and rules of the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.selection.plane import PlaneView, Quadrant, QuadrantRule, classify, scaled_entry_alphas
from qtune_service.selection.thresholds import Selection, select

RNG = np.random.default_rng(5)
NLL, ENTROPY = RNG.lognormal(size=(2, 50))


def selected(rule: QuadrantRule | None = None) -> Selection:
    """Stage 1 over 50 samples."""
    return select(NLL, ENTROPY, sample_keep_ratio=0.4, rule=rule)


def test_quadrants_are_numbered_as_named_and_two_are_kept() -> None:
    """Names and numbers are part of the output format."""
    assert [(q.name, int(q)) for q in Quadrant] == [("Q1", 1), ("Q2", 2), ("Q3", 3), ("Q4", 4)]
    assert [q.name for q in Quadrant if q.kept] == ["Q2", "Q4"]


def test_labels_of_a_hand_drawn_plane() -> None:
    """Four samples in the middles of the quadrants, one in the centre; ranks of N = 5 doubled are 1, 3, 5, 7, 9."""
    nll = np.array([9, 7, 1, 3, 5], dtype=np.uint32)
    entropy = np.array([7, 1, 3, 9, 5], dtype=np.uint32)
    entry = scaled_entry_alphas(nll, entropy, 5)
    assert entry.tolist() == [7, 3, 7, 3, 5]
    labels = {bound: classify(nll, entropy, entry, bound, 5).tolist() for bound in (2, 3, 5, 7)}
    assert labels == {2: [1, 3, 3, 1, 3], 3: [1, 2, 3, 4, 3], 5: [1, 2, 3, 4, 2], 7: [2, 2, 4, 4, 2]}


def test_a_rule_sees_the_population_and_its_labels_count() -> None:
    """The view holds scores, ranks, thresholds and the method's labels; kept is what the rule calls Q2 or Q4."""
    plain = selected()
    seen: list[PlaneView] = []

    def lenient(plane: PlaneView) -> NDArray[np.int8]:
        seen.append(plane)
        labels = plane.labels.copy()
        near = plane.perplexity <= 1.5 * plane.thresholds.ppl_high
        labels[(labels == Quadrant.Q1) & near] = Quadrant.Q4
        return labels

    ruled = selected(lenient)
    (plane,) = seen
    np.testing.assert_array_equal(plane.mean_nll, NLL)
    np.testing.assert_array_equal(plane.mean_entropy, ENTROPY)
    np.testing.assert_allclose(plane.perplexity, np.exp(NLL), rtol=1e-15)
    np.testing.assert_array_equal(plane.p, (np.argsort(np.argsort(NLL)) + 0.5) / 50)
    np.testing.assert_array_equal(plane.e, (np.argsort(np.argsort(ENTROPY)) + 0.5) / 50)
    np.testing.assert_array_equal(plane.labels, plain.labels)
    assert plane.thresholds == plain.thresholds == ruled.thresholds
    moved = (plain.labels == 1) & (np.exp(NLL) <= 1.5 * plain.thresholds.ppl_high)
    assert moved.any()
    np.testing.assert_array_equal(ruled.labels, np.where(moved, 4, plain.labels))
    assert ruled.kept == plain.kept + moved.sum() == np.isin(ruled.labels, (2, 4)).sum()
    assert ruled.target == plain.target


def test_a_rule_may_return_a_list_of_quadrants() -> None:
    """Whatever numpy reads as integers will do."""
    assert selected(lambda plane: np.array([Quadrant.Q3] * len(plane.p))).kept == 0
    assert selected(lambda _: [Quadrant.Q2] * 50).counts[Quadrant.Q2] == 50  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["mean_nll", "mean_entropy", "perplexity", "p", "e", "labels"])
def test_a_rule_cannot_change_the_population(field: str) -> None:
    """Writing into the view fails, so scores cannot be altered by accident."""

    def careless(plane: PlaneView) -> NDArray[np.int8]:
        getattr(plane, field)[0] = 1
        return plane.labels

    with pytest.raises(ValueError, match="read-only"):
        selected(careless)
    assert NLL.flags.writeable


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.full(49, 1), r"returned shape \(49,\) for 50 samples"),
        (np.full((50, 1), 1), r"returned shape \(50, 1\)"),
        (None, r"returned shape \(\)"),
        (np.full(50, 2.0), "returned float64 values"),
        (np.full(50, True), "returned bool values"),
        (np.full(50, "Q1"), "returned <U2 values"),
        (np.array([1] * 48 + [0, 5]), r"gave 2 sample\(s\) no quadrant, the first is sample 48 with label 0"),
        (np.array([258] + [1] * 49), "with label 258"),
    ],
)
def test_a_rule_must_give_each_sample_one_label(returned: Any, message: str) -> None:
    """Wrong shapes, types and values are named, with the rule's name and what is expected."""

    def broken(_: PlaneView) -> Any:
        return returned

    with pytest.raises(SpecError, match=message) as caught:
        selected(broken)
    assert "broken" in caught.value.message
    assert "50 integers from 1 (Q1) to 4 (Q4)" in caught.value.hint
