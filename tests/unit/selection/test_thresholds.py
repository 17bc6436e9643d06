"""selection/thresholds.py: the laws of stage 1, against a brute force by the definitions and against golden cases."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.samples import perplexity
from qtune_service.selection.plane import Quadrant, scaled_entry_alphas
from qtune_service.selection.ranks import double_midranks
from qtune_service.selection.thresholds import Selection, bisected_alpha, select

Pairs = list[tuple[float, float]]

# Hundredths: exp keeps them apart, so that thresholds in perplexity part the same samples as those in nats.
HUNDREDTHS = st.integers(0, 1200).map(lambda value: value / 100)
TIED = st.sampled_from([0.5, 1.0, 1.5, 2.0])
PAIRS = st.lists(st.tuples(HUNDREDTHS, HUNDREDTHS), min_size=1, max_size=40) | st.lists(
    st.tuples(TIED, TIED), min_size=1, max_size=40
)
DISTINCT = st.integers(1, 60).flatmap(
    lambda count: st.tuples(st.permutations(range(count)), st.permutations(range(count))).map(
        lambda columns: [(nll / 8, entropy / 8) for nll, entropy in zip(*columns, strict=True)]
    )
)
RATIOS = st.floats(0.001, 1) | st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])
ITERATIONS = st.none() | st.integers(1, 12)


def columns(pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean NLL (N,) and mean entropy (N,)."""
    nll, entropy = np.array(pairs, dtype=np.float64).T
    return nll, entropy


def run(pairs: Pairs, ratio: float, max_iter: int | None = None) -> Selection:
    """Stage 1 on pairs."""
    return select(*columns(pairs), sample_keep_ratio=ratio, bisect_max_iter=max_iter)


def entries(pairs: Pairs) -> NDArray[np.int64]:
    """2N times the smallest a at which each sample is kept."""
    nll, entropy = columns(pairs)
    return scaled_entry_alphas(double_midranks(nll), double_midranks(entropy), len(pairs)).astype(np.int64)


def midranks(values: list[float]) -> list[Fraction]:
    """(rank - 1/2) / N by counting, as exact fractions."""
    return [
        (sum(v < value for v in values) + Fraction(sum(v == value for v in values), 2)) / len(values)
        for value in values
    ]


def brute_force(pairs: Pairs, ratio: float) -> dict[str, Any]:
    """Sections 3 and 4 of the method word by word: try every a on the grid of halves of ranks, in fractions."""
    nll, entropy = [n for n, _ in pairs], [e for _, e in pairs]
    points = list(zip(midranks(nll), midranks(entropy), strict=True))
    target = math.ceil(round(ratio * len(pairs), 9))

    def keep(a: Fraction) -> list[bool]:
        return [(p >= 1 - a and e <= a) or (p <= a and e >= 1 - a) for p, e in points]

    a = next(a for a in (Fraction(k, 2 * len(pairs)) for k in range(2 * len(pairs) + 1)) if sum(keep(a)) >= target)
    labels = []
    for (p, e), kept in zip(points, keep(a), strict=True):
        labels.append(("Q2" if p >= e else "Q4") if kept else ("Q1" if p + e > 1 else "Q3"))
    return {
        "alpha": float(a),
        "labels": labels,
        "kept": sum(keep(a)),
        "target": target,
        "disjoint_capacity": sum(keep(Fraction(1, 2))),
        "nll_low": max((n for n, (p, _) in zip(nll, points, strict=True) if p <= a), default=-math.inf),
        "nll_high": min((n for n, (p, _) in zip(nll, points, strict=True) if p >= 1 - a), default=math.inf),
        "ent_low": max((n for n, (_, e) in zip(entropy, points, strict=True) if e <= a), default=-math.inf),
        "ent_high": min((n for n, (_, e) in zip(entropy, points, strict=True) if e >= 1 - a), default=math.inf),
    }


def names(selection: Selection) -> list[str]:
    """Labels as Q1..Q4."""
    return [Quadrant(int(label)).name for label in selection.labels]


@settings(max_examples=300)
@given(PAIRS, RATIOS)
def test_selection_is_the_method_word_by_word(pairs: Pairs, ratio: float) -> None:
    """Alpha, labels, counts and all four thresholds equal a brute force over every a."""
    want, got = brute_force(pairs, ratio), run(pairs, ratio)
    assert got.thresholds.alpha == want["alpha"]
    assert names(got) == want["labels"]
    assert (got.kept, got.target, got.disjoint_capacity) == (want["kept"], want["target"], want["disjoint_capacity"])
    assert (got.thresholds.ppl_low, got.thresholds.ppl_high) == tuple(perplexity([want["nll_low"], want["nll_high"]]))
    assert (got.thresholds.ent_low, got.thresholds.ent_high) == (want["ent_low"], want["ent_high"])


def test_golden_planes(shared_dir: Path) -> None:
    """Every worked example: labels and counts equal, thresholds to 1e-12."""
    files = sorted((shared_dir / "golden").glob("plane_*.json"))
    assert files
    for file in files:
        golden = json.loads(file.read_text())
        got = select(golden["mean_nll"], golden["mean_entropy"], sample_keep_ratio=golden["sample_keep_ratio"])
        assert names(got) == golden["quadrant"], file.name
        assert (got.target, got.kept) == (golden["target"], golden["kept"]), file.name
        assert got.disjoint_capacity == golden["disjoint_capacity"], file.name
        for key in ("alpha", "ppl_low", "ppl_high", "ent_low", "ent_high"):
            assert getattr(got.thresholds, key) == pytest.approx(golden[key], rel=1e-12, abs=0), (file.name, key)


@given(PAIRS | DISTINCT, RATIOS)
def test_kept_exceeds_the_target_by_ties_at_alpha_only(pairs: Pairs, ratio: float) -> None:
    """Without the samples that enter exactly at alpha the target is missed."""
    got = run(pairs, ratio)
    entry, bound = entries(pairs), round(got.thresholds.alpha * 2 * len(pairs))
    assert np.count_nonzero(entry < bound) < got.target <= got.kept == np.count_nonzero(entry <= bound)


@given(DISTINCT, RATIOS)
def test_kept_exceeds_the_target_by_three_at_most_where_no_score_repeats(pairs: Pairs, ratio: float) -> None:
    """Four samples at most share an entry: one on each edge of each corner."""
    got = run(pairs, ratio)
    assert got.target <= got.kept <= got.target + 3


@given(PAIRS, RATIOS, RATIOS, ITERATIONS)
def test_the_kept_set_grows_with_the_ratio(pairs: Pairs, one: float, other: float, max_iter: int | None) -> None:
    """Nothing kept at a smaller ratio is removed at a larger one, stopped early or not."""
    less, more = (np.isin(run(pairs, ratio, max_iter).labels, (2, 4)) for ratio in sorted((one, other)))
    assert not np.any(less & ~more)


@given(PAIRS, RATIOS, st.randoms())
def test_labels_follow_a_permutation_of_the_samples(pairs: Pairs, ratio: float, random: Any) -> None:
    """Thresholds stay, and each sample takes its label along."""
    order = list(range(len(pairs)))
    random.shuffle(order)
    straight, shuffled = run(pairs, ratio), run([pairs[i] for i in order], ratio)
    np.testing.assert_array_equal(straight.labels[order], shuffled.labels)
    assert straight.thresholds == shuffled.thresholds


@given(PAIRS, RATIOS, ITERATIONS)
def test_each_sample_has_one_label_and_q2_q4_are_the_kept(pairs: Pairs, ratio: float, max_iter: int | None) -> None:
    """Labels partition the population; Q2 and Q4 are those in a corner, Q1 and Q3 the others."""
    got = run(pairs, ratio, max_iter)
    assert got.labels.shape == (len(pairs),)
    assert got.labels.dtype == np.int8
    assert set(got.labels.tolist()) <= {1, 2, 3, 4}
    assert sum(got.counts.values()) == got.num_samples == len(pairs)
    assert got.counts == {quadrant: names(got).count(quadrant.name) for quadrant in Quadrant}
    in_corner = entries(pairs) <= round(got.thresholds.alpha * 2 * len(pairs))
    np.testing.assert_array_equal(np.isin(got.labels, (2, 4)), in_corner)
    assert got.kept == np.count_nonzero(in_corner)


@given(PAIRS, RATIOS, ITERATIONS)
def test_the_rule_by_thresholds_is_the_rule_by_ranks(pairs: Pairs, ratio: float, max_iter: int | None) -> None:
    """Comparing raw scores with the four thresholds finds the same corners, kept samples and all."""
    got = run(pairs, ratio, max_iter)
    nll, entropy = columns(pairs)
    ppl, edges = perplexity(nll), got.thresholds
    q2 = (ppl >= edges.ppl_high) & (entropy <= edges.ent_low)
    q4 = (ppl <= edges.ppl_low) & (entropy >= edges.ent_high)
    np.testing.assert_array_equal(q2 | q4, np.isin(got.labels, (2, 4)))
    assert np.all(got.labels[q2 & ~q4] == Quadrant.Q2)
    assert np.all(got.labels[q4 & ~q2] == Quadrant.Q4)


@given(PAIRS, RATIOS, st.integers(1, 12))
def test_an_early_stop_keeps_too_many_never_too_few(pairs: Pairs, ratio: float, max_iter: int) -> None:
    """After k halvings alpha lies less than 2^-k (one grid step more for rounding) above the exact one."""
    exact, early = run(pairs, ratio), run(pairs, ratio, max_iter)
    grid = 2 * len(pairs)
    excess = round((early.thresholds.alpha - exact.thresholds.alpha) * grid)
    assert 0 <= excess <= math.ceil(grid / 2**max_iter) - 1
    assert early.kept >= exact.kept >= exact.target == early.target


@given(st.integers(1, 10_000), st.integers(1, 20), st.data())
def test_an_early_stop_is_a_bisection_step_by_step(num_samples: int, max_iter: int, data: st.DataObject) -> None:
    """A bisection that counts at each halving ends at the same scaled alpha."""
    entry = np.array(data.draw(st.lists(st.integers(1, 2 * num_samples - 1), min_size=1, max_size=30)))
    target = data.draw(st.integers(1, len(entry)))
    low, high = 0, 2 * num_samples
    for _ in range(max_iter):
        if high - low > 1:
            middle = (low + high) // 2
            if np.count_nonzero(entry <= middle) >= target:
                high = middle
            else:
                low = middle
    smallest = int(np.sort(entry)[target - 1])
    assert bisected_alpha(smallest, num_samples, max_iter) == high
    assert bisected_alpha(smallest, num_samples, None) == smallest == bisected_alpha(smallest, num_samples, 64)


def test_ten_iterations_are_exact_for_a_batch() -> None:
    """Training's default loses nothing on a global batch of up to 512."""
    rng = np.random.default_rng(3)
    nll, entropy = rng.lognormal(size=(2, 512))
    early = select(nll, entropy, sample_keep_ratio=0.3, bisect_max_iter=10)
    exact = select(nll, entropy, sample_keep_ratio=0.3)
    assert early.thresholds == exact.thresholds
    np.testing.assert_array_equal(early.labels, exact.labels)


def test_an_early_stop_on_a_large_population_differs_by_what_its_grid_allows() -> None:
    """10 halvings of [0, 1] leave alpha within 2^-10, and the kept share near its target."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=300_000)  # more than one block
    nll, entropy = np.exp(shared), np.exp(0.6 * shared + 0.8 * rng.normal(size=shared.size))
    early = select(nll, entropy, sample_keep_ratio=0.3, bisect_max_iter=10)
    exact = select(nll, entropy, sample_keep_ratio=0.3)
    assert 0 < early.thresholds.alpha - exact.thresholds.alpha < 2**-10
    assert exact.target <= exact.kept <= exact.target + 3
    assert exact.kept < early.kept < exact.kept + 300_000 * 2**-10 * 4  # the local density here is below 4


@given(PAIRS)
def test_ratio_one_keeps_every_sample(pairs: Pairs) -> None:
    """The search reaches all samples."""
    got = run(pairs, 1.0)
    assert got.kept == got.target == len(pairs)
    assert set(names(got)) <= {"Q2", "Q4"}


def test_one_sample_is_kept() -> None:
    """P = e = 1/2 lies in both corners, and p >= e makes it Q2."""
    got = run([(1.3, 0.7)], 0.01)
    assert names(got) == ["Q2"]
    assert got.thresholds.alpha == 0.5
    assert got.thresholds.ppl_low == got.thresholds.ppl_high == math.exp(1.3)


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [([(1.0, 2.0), (2.0, 1.0)], ["Q4", "Q2"]), ([(1.0, 1.0), (2.0, 2.0)], ["Q2", "Q2"])],
)
def test_two_samples(pairs: Pairs, labels: list[str]) -> None:
    """Opposed ranks fill both corners; equal ranks tie at alpha 3/4, and both are kept though one was asked for."""
    assert names(run(pairs, 0.5)) == labels


def test_equal_samples_stand_or_fall_together() -> None:
    """All scores equal: every sample enters at 1/2, so the smallest ratio keeps all."""
    got = run([(1.0, 2.0)] * 7, 0.1)
    assert (got.target, got.kept, got.thresholds.alpha) == (1, 7, 0.5)


def test_an_edge_without_samples_is_infinitely_far() -> None:
    """Ties at the low end of NLL and at the high end of entropy leave nothing beyond Q4's edges."""
    pairs = [(1.0, 5.0)] * 5 + [(2.0, 4.0), (3.0, 3.0), (4.0, 0.5)]
    got = run(pairs, 0.1)
    assert names(got)[-1] == "Q2"
    assert got.kept == 1
    assert got.thresholds.ppl_low == 0.0  # exp(-inf)
    assert got.thresholds.ent_high == math.inf
    assert (got.thresholds.ppl_high, got.thresholds.ent_low) == (float(perplexity(4.0)), 0.5)


def test_correlated_scores_need_overlapping_corners_and_say_so() -> None:
    """With rank correlation near 0.9 disjoint corners hold about 15%; half of the samples needs alpha near 0.69."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=20_000)
    nll, entropy = np.exp(shared), np.exp(0.91 * shared + math.sqrt(1 - 0.91**2) * rng.normal(size=shared.size))
    got = select(nll, entropy, sample_keep_ratio=0.5)
    assert 0.12 < got.disjoint_capacity / got.num_samples < 0.17
    assert 0.65 < got.thresholds.alpha < 0.75
    assert 10_000 <= got.kept <= 10_003


def test_scores_beyond_the_range_of_exp_are_ranked_all_the_same() -> None:
    """Ranking works on nats: where perplexity overflows to inf, order and labels are still right."""
    nll, entropy = np.array([800.0, 900.0, 1.0, 2.0]), np.array([2.0, 1.0, 4.0, 3.0])
    got = select(nll, entropy, sample_keep_ratio=0.5)
    assert names(got) == ["Q3", "Q2", "Q4", "Q3"]
    assert got.thresholds.ppl_high == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_non_finite_scores_are_refused_by_name_and_place(bad: float, column: int) -> None:
    """They must have been rejected; filed anywhere they would shift every threshold."""
    scores = [np.ones(5), np.ones(5)]
    scores[column][3] = bad
    with pytest.raises(DataError, match=f"{('mean_nll', 'mean_entropy')[column]} of sample 3 is {bad}"):
        select(*scores, sample_keep_ratio=0.5)


def test_populations_that_cannot_be_ranked_are_refused() -> None:
    """Nothing scored, columns of different length, and tables instead of columns."""
    with pytest.raises(DataError, match="no sample was scored"):
        select([], [], sample_keep_ratio=0.5)
    with pytest.raises(DataError, match=r"shape \(3,\) and mean_entropy \(2,\)"):
        select([1.0, 2.0, 3.0], [1.0, 2.0], sample_keep_ratio=0.5)
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        select([[1.0, 2.0]], [[1.0, 2.0]], sample_keep_ratio=0.5)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.0001, math.nan])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    """0 keeps nothing and above 1 there is nothing to keep."""
    with pytest.raises(SpecError, match="sample_keep_ratio"):
        run([(1.0, 1.0)], ratio)


def test_zero_iterations_are_refused() -> None:
    """Without one halving alpha would be 1."""
    with pytest.raises(SpecError, match="bisect_max_iter is 0"):
        run([(1.0, 1.0)], 0.5, 0)


@given(PAIRS, RATIOS)
def test_the_input_is_left_as_it_was(pairs: Pairs, ratio: float) -> None:
    """Callers go on using their columns."""
    assume(len(pairs) > 1)
    nll, entropy = columns(pairs)
    before = nll.copy(), entropy.copy()
    select(nll, entropy, sample_keep_ratio=ratio)
    np.testing.assert_array_equal((nll, entropy), before)
