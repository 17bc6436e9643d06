"""selection/token_masks.py: the laws of stage 2, against a plain per-sample loop and against golden cases."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.selection.token_masks import prune_token_masks, tokens_left


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: its loss mask, the NLL of its scored tokens, whether stage 2 looks at it."""

    mask: list[int]
    nll: list[float]
    in_q2: bool


@st.composite
def a_row(draw: st.DrawFn) -> Row:
    """Any mask, position 0 included, with tied, large and small scores."""
    mask = draw(st.lists(st.integers(0, 1), max_size=25))
    scored = sum(mask[1:])
    value = st.floats(0, 60) | st.sampled_from([0.0, 0.5, 1.0, 2.0, 49.0, 55.0, 900.0])
    return Row(mask, draw(st.lists(value, min_size=scored, max_size=scored)), draw(st.booleans()))


ROWS = st.lists(a_row(), max_size=8)
RATIOS = st.floats(0.001, 1) | st.sampled_from([0.3, 0.5, 0.7, 1.0])
LAMBDAS = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


def prune(
    rows: list[Row],
    ratio: float = 0.5,
    neighbor_lambda: float = 0.5,
    *,
    min_tokens: int = 1,
    reverse: bool = False,
) -> list[list[int]]:
    """Stage 2 on rows: flatten, prune, cut again."""
    offsets = np.cumsum([0, *(len(row.mask) for row in rows)])
    final = prune_token_masks(
        np.array([bit for row in rows for bit in row.mask], dtype=np.int8),
        offsets,
        np.array([value for row in rows for value in row.nll], dtype=np.float64),
        np.array([row.in_q2 for row in rows], dtype=np.bool_),
        token_keep_ratio=ratio,
        neighbor_lambda=neighbor_lambda,
        min_tokens_to_prune=min_tokens,
        token_strategy="reversed" if reverse else "neighbor",
    )
    assert final.dtype == np.int8
    return [final[lo:hi].tolist() for lo, hi in pairwise(offsets)]


def trained(mask: list[int]) -> list[int]:
    """Return the loss mask without position 0."""
    return [0, *mask[1:]] if mask else []


def one_by_one(row: Row, ratio: float, neighbor_lambda: float, min_tokens: int, *, reverse: bool) -> list[int]:
    """Section 5 of the method for one sample, as a loop over positions."""
    mask = trained(row.mask)
    positions = [t for t, bit in enumerate(mask) if bit]
    if not row.in_q2 or len(positions) < min_tokens:
        return mask
    ppl = {t: float(np.exp(min(value, 50.0))) for t, value in zip(positions, row.nll, strict=True)}
    score = {
        t: (1 - neighbor_lambda) * ppl[t] + neighbor_lambda * (ppl.get(t - 1, ppl[t]) + ppl.get(t + 1, ppl[t])) / 2
        for t in positions
    }
    budget = max(1, math.ceil(round(ratio * len(positions), 9)))
    best = sorted(positions, key=lambda t: (-score[t] if reverse else score[t], t))[:budget]
    return [int(t in best) for t in range(len(mask))]


@settings(max_examples=300)
@given(ROWS, RATIOS, LAMBDAS, st.integers(1, 6), st.booleans())
def test_masks_are_those_of_a_loop_over_samples(
    rows: list[Row], ratio: float, neighbor_lambda: float, min_tokens: int, reverse: bool
) -> None:
    """Ragged rows, spans, ties and empty rows: one flat pass equals the definition, token by token."""
    want = [one_by_one(row, ratio, neighbor_lambda, min_tokens, reverse=reverse) for row in rows]
    assert prune(rows, ratio, neighbor_lambda, min_tokens=min_tokens, reverse=reverse) == want


def test_golden_tokens(shared_dir: Path) -> None:
    """Every worked example, alone and all of equal arguments in one flat call."""
    cases = json.loads((shared_dir / "golden" / "tokens_mixed.json").read_text())
    assert cases
    together: dict[tuple[float, float, bool], list[tuple[Row, list[int]]]] = {}
    for case in cases:
        mask = [0, *(bit for length in case["spans"] for bit in [*[1] * length, 0])]
        row = Row(mask, case["nll"], in_q2=True)
        key = case["token_keep_ratio"], case["neighbor_lambda"], case["reverse"]
        (final,) = prune([row], key[0], key[1], reverse=key[2])
        assert [bit for bit, was in zip(final, mask, strict=True) if was] == case["keep"]
        together.setdefault(key, []).append((row, final))
    for (ratio, neighbor_lambda, reverse), group in together.items():
        assert prune([row for row, _ in group], ratio, neighbor_lambda, reverse=reverse) == [mask for _, mask in group]


@given(ROWS, RATIOS, LAMBDAS, st.booleans())
def test_final_masks_are_subsets_within_budget_and_spare_the_others(
    rows: list[Row], ratio: float, neighbor_lambda: float, reverse: bool
) -> None:
    """Nothing new is trained on; Q2 rows keep max(1, ceil(ratio n)) tokens, all other rows every one."""
    for row, final in zip(rows, prune(rows, ratio, neighbor_lambda, reverse=reverse), strict=True):
        assert len(final) == len(row.mask)
        assert all(bit <= was for bit, was in zip(final, trained(row.mask), strict=True))
        scored = len(row.nll)
        if row.in_q2 and scored:
            assert sum(final) == max(1, math.ceil(round(ratio * scored, 9)))
        else:
            assert final == trained(row.mask)


@given(ROWS, RATIOS, LAMBDAS, st.randoms())
def test_masks_follow_a_permutation_of_the_rows(
    rows: list[Row], ratio: float, neighbor_lambda: float, random: Any
) -> None:
    """The budget is per sample, so neighbours in the shard do not matter."""
    order = list(range(len(rows)))
    random.shuffle(order)
    straight = prune(rows, ratio, neighbor_lambda)
    assert prune([rows[i] for i in order], ratio, neighbor_lambda) == [straight[i] for i in order]


@given(ROWS, RATIOS, RATIOS, LAMBDAS)
def test_kept_tokens_grow_with_the_ratio(rows: list[Row], one: float, other: float, neighbor_lambda: float) -> None:
    """A token kept at a smaller ratio is kept at a larger one."""
    less, more = (prune(rows, ratio, neighbor_lambda) for ratio in sorted((one, other)))
    assert all(small <= large for a, b in zip(less, more, strict=True) for small, large in zip(a, b, strict=True))


@given(ROWS, LAMBDAS)
def test_ratio_one_keeps_every_token(rows: list[Row], neighbor_lambda: float) -> None:
    """Only position 0 is lost."""
    assert prune(rows, 1.0, neighbor_lambda) == [trained(row.mask) for row in rows]


def test_a_token_is_judged_with_its_neighbours() -> None:
    """Alone the lone peak goes first; with neighbours the one beside other high ones does."""
    row = Row([0, 1, 1, 1, 1, 1, 1], [math.log(v) for v in (10.0, 1.0, 1.0, 8.0, 9.0, 8.0)], in_q2=True)
    assert prune([row], 5 / 6, 0.0) == [[0, 0, 1, 1, 1, 1, 1]]
    assert prune([row], 5 / 6, 0.5) == [[0, 1, 1, 1, 1, 0, 1]]


def test_neighbours_stay_within_a_span() -> None:
    """Across a gap of untrained tokens there is no neighbour, so the token's own perplexity stands in."""
    nll = [math.log(v) for v in (4.0, 1.0, 100.0)]
    joined, parted = Row([0, 1, 1, 1], nll, in_q2=True), Row([0, 1, 1, 0, 1], nll, in_q2=True)
    # lambda 1: joined scores are (4 + 1) / 2, (4 + 100) / 2, (1 + 100) / 2; parted ones (4 + 1) / 2, (4 + 1) / 2, 100
    assert prune([joined], 2 / 3, 1.0) == [[0, 1, 0, 1]]
    assert prune([parted], 2 / 3, 1.0) == [[0, 1, 1, 0, 0]]


def test_rows_are_not_neighbours() -> None:
    """The last token of a row and the first of the next, both trained, do not touch."""
    high, low = Row([1, 1], [9.0], in_q2=True), Row([1, 1, 1], [1.0, 2.0], in_q2=True)
    assert prune([high, low], 0.5, 1.0) == [[0, 1], [0, 1, 0]]
    assert prune([low, high], 0.5, 1.0) == [[0, 1, 0], [0, 1]]


def test_equal_scores_are_kept_from_the_front() -> None:
    """Ties go to the earlier position, in both orders."""
    row = Row([0, 1, 1, 1, 1], [1.0] * 4, in_q2=True)
    assert prune([row], 0.5) == prune([row], 0.5, reverse=True) == [[0, 1, 1, 0, 0]]


def test_reversed_order_keeps_the_highest_scores() -> None:
    """The ablation of the paper."""
    row = Row([0, 1, 1, 1, 1], [1.0, 2.0, 3.0, 4.0], in_q2=True)
    assert prune([row], 0.5, 0.0) == [[0, 1, 1, 0, 0]]
    assert prune([row], 0.5, 0.0, reverse=True) == [[0, 0, 0, 1, 1]]


def test_short_answers_keep_all_tokens_below_the_minimum() -> None:
    """min_tokens_to_prune is the first length that is pruned."""
    row = Row([0, 1, 1, 1, 1], [1.0, 2.0, 3.0, 4.0], in_q2=True)
    assert prune([row], 0.5, min_tokens=5) == [[0, 1, 1, 1, 1]]
    assert prune([row], 0.5, min_tokens=4) == [[0, 1, 1, 0, 0]]


@pytest.mark.filterwarnings("error")
def test_hopeless_tokens_tie_at_fifty_nats_without_overflow() -> None:
    """Exp is capped, so 60 and 900 nats are equally bad and the earlier of them survives."""
    row = Row([0, 1, 1, 1], [900.0, 60.0, 1.0], in_q2=True)
    assert prune([row], 2 / 3, 0.0) == [[0, 1, 0, 1]]


def test_stage_two_never_sees_the_context() -> None:
    """Tokens leave the loss only: input ids are not even an argument, and the caller's mask is not written to."""
    assert "input_ids" not in inspect.signature(prune_token_masks).parameters
    mask = np.ones(6, dtype=np.int8)
    prune_token_masks(
        mask, np.array([0, 6]), np.arange(5.0), np.array([True]), token_keep_ratio=0.2, neighbor_lambda=0.5
    )
    assert mask.tolist() == [1] * 6


def test_padded_batches_serve_as_they_are() -> None:
    """A trainer's (B, T) matrix with padding is flat rows of equal length, in float32."""
    mask: NDArray[np.int8] = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], dtype=np.int8)
    final = prune_token_masks(
        mask.ravel(),
        np.arange(3) * 4,
        np.array([1, 2, 4, 3], dtype=np.float32),
        np.array([True, True]),
        token_keep_ratio=0.5,
        neighbor_lambda=0.0,
    )
    assert final.reshape(2, 4).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_nothing_to_prune() -> None:
    """No rows, and rows without a scored token."""
    assert prune([]) == []
    assert prune([Row([], [], in_q2=True), Row([1], [], in_q2=True), Row([0, 0], [], in_q2=True)]) == [[], [0], [0, 0]]


def test_non_finite_scores_of_pruned_rows_are_refused() -> None:
    """A NaN would be sorted somewhere; in rows that keep every token it does not matter."""
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match="non-finite"):
            prune([Row([0, 1, 1], [1.0, bad], in_q2=True)])
        assert prune([Row([0, 1, 1], [1.0, bad], in_q2=False)]) == [[0, 1, 1]]


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    """Scores for untrained positions, flags for other rows and offsets of another array are told apart."""
    good: dict[str, Any] = {"token_keep_ratio": 0.5, "neighbor_lambda": 0.5}
    mask, offsets, flags = np.array([1, 1, 1], dtype=np.int8), np.array([0, 3]), np.array([True])
    with pytest.raises(DataError, match="3 token scores for 2 scored positions"):
        prune_token_masks(mask, offsets, np.ones(3), flags, **good)
    with pytest.raises(DataError, match="prunable has 2 entries for 1 rows"):
        prune_token_masks(mask, offsets, np.ones(2), np.array([True, False]), **good)
    with pytest.raises(DataError, match="offsets of loss_mask_flat"):
        prune_token_masks(mask, np.array([0, 2]), np.ones(2), flags, **good)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_keep_ratio": 0.0}, "token_keep_ratio is 0.0"),
        ({"token_keep_ratio": 1.5}, "token_keep_ratio is 1.5"),
        ({"neighbor_lambda": -0.1}, "neighbor_lambda is -0.1"),
        ({"neighbor_lambda": 1.1}, "neighbor_lambda is 1.1"),
        ({"min_tokens_to_prune": 0}, "min_tokens_to_prune is 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    """Ranges of the method, named with the value given."""
    good: dict[str, Any] = {"token_keep_ratio": 0.5, "neighbor_lambda": 0.5, **arguments}
    with pytest.raises(SpecError, match=message):
        prune_token_masks(np.ones(2, dtype=np.int8), np.array([0, 2]), np.ones(1), np.array([True]), **good)


def test_ppl_is_the_method_with_lambda_0() -> None:
    """Each token by itself, whatever lambda says."""
    mask, nll = np.ones(9, np.int8), np.array([3.0, 0.1, 2.0, 0.2, 4.0, 0.3, 1.0, 5.0])
    arguments = (mask, np.array([0, 9]), nll, np.array([True]))
    by_ppl = prune_token_masks(*arguments, token_keep_ratio=0.5, neighbor_lambda=0.9, token_strategy="ppl")
    alone = prune_token_masks(*arguments, token_keep_ratio=0.5, neighbor_lambda=0.0)
    assert by_ppl.tolist() == alone.tolist() == [0, 0, 1, 0, 1, 0, 1, 1, 0]


def test_none_keeps_every_token() -> None:
    """Only samples are pruned."""
    final = prune_token_masks(
        np.ones(4, np.int8), np.array([0, 4]), np.arange(3.0), np.array([True]),
        token_keep_ratio=0.1, neighbor_lambda=0.5, token_strategy="none",
    )  # fmt: skip
    assert final.tolist() == [0, 1, 1, 1]


def test_random_tokens_meet_the_budget_whatever_lies_around_a_sample() -> None:
    """A draw depends on the seed, the sample's place in the population and the position, not on the shard."""
    mask, offsets = np.ones(60, np.int8), np.array([0, 20, 40, 60])

    def drawn(rows: list[int], seed: int = 0) -> list[list[int]]:
        bounds = offsets[: len(rows) + 1]
        final = prune_token_masks(
            mask[: bounds[-1]], bounds, np.zeros(19 * len(rows)), np.ones(len(rows), np.bool_),
            token_keep_ratio=0.5, neighbor_lambda=0.5, token_strategy="random", seed=seed,
            row_index=np.array(rows, np.int64),
        )  # fmt: skip
        return [final[lo:hi].tolist() for lo, hi in pairwise(bounds)]

    together = drawn([5, 6, 7])
    assert together == drawn([5]) + drawn([6, 7])
    assert together != drawn([5, 6, 7], seed=1)
    assert [sum(row) for row in together] == [10, 10, 10]
    assert len({tuple(row) for row in together}) == 3


def test_unknown_token_strategies_are_refused() -> None:
    """With the names that there are."""
    with pytest.raises(SpecError, match="token_strategy is 'worst'"):
        prune_token_masks(
            np.ones(2, np.int8), np.array([0, 2]), np.ones(1), np.array([True]),
            token_keep_ratio=0.5, neighbor_lambda=0.5, token_strategy="worst",
        )  # fmt: skip


@given(st.lists(st.integers(1, 50), max_size=20), RATIOS, st.integers(1, 20))
def test_tokens_left_are_those_that_pruning_leaves(sizes: list[int], ratio: float, min_tokens: int) -> None:
    """Counted without looking at scores."""
    numbers = np.array(sizes, np.int64)
    offsets = np.concatenate([[0], np.cumsum(numbers + 1)])
    final = prune_token_masks(
        np.ones(offsets[-1], np.int8), offsets, np.arange(float(numbers.sum())) % 7, np.ones(len(sizes), np.bool_),
        token_keep_ratio=ratio, neighbor_lambda=0.5, min_tokens_to_prune=min_tokens,
    )  # fmt: skip
    left = tokens_left(numbers, token_keep_ratio=ratio, min_tokens_to_prune=min_tokens, token_strategy="neighbor")
    assert left.tolist() == [int(final[lo:hi].sum()) for lo, hi in pairwise(offsets)]
    whole = tokens_left(numbers, token_keep_ratio=ratio, min_tokens_to_prune=min_tokens, token_strategy="none")
    assert whole.tolist() == sizes
