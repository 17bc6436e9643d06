"""Tests of the warnings: each appears when it should, says its numbers, and is silent otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qtune_service.report.data import Counts, ReportData, TokenTotals
from qtune_service.report.text import find_warnings
from tests.report_data import made_up_report, made_up_scores


def _quiet() -> ReportData:
    """Return a job without findings: little correlation, a small target, long responses."""
    return made_up_report(made_up_scores(correlation=0.0), keep_ratio=0.25)


def _with_prune(data: ReportData, **values: object) -> ReportData:
    return replace(data, spec={**data.spec, "prune": {**data.spec["prune"], **values}})


def test_a_good_job_has_no_warnings() -> None:
    """Nothing is said where nothing is wrong."""
    assert find_warnings(_quiet()) == ()


def test_overlapping_corners_are_told_with_alpha_and_capacity() -> None:
    """Strong correlation makes corners poor; the most that disjoint ones hold is given in percent."""
    data = made_up_report(made_up_scores(correlation=0.93))
    assert data.thresholds is not None
    (warning,) = find_warnings(data)
    share = 100 * data.disjoint_capacity / data.counts.scored
    assert f"requires alpha {data.thresholds.alpha:.2f}, where the two kept corners overlap" in warning
    assert f"Disjoint corners hold at most {share:.1f}% ({data.disjoint_capacity} samples)." in warning


def test_alpha_just_over_a_half_is_not_shown_as_a_half() -> None:
    """Rounding must not contradict the sentence."""
    data = _quiet()
    assert data.thresholds is not None
    (warning,) = find_warnings(replace(data, thresholds=replace(data.thresholds, alpha=0.5004)))
    assert "alpha 0.5004," in warning


def test_short_q2_responses_are_told_only_where_tokens_are_removed() -> None:
    """Under 16 tokens; silent where min_tokens_to_prune spares them, or where nothing was removed."""
    data = _quiet()
    short = replace(data, distributions=replace(data.distributions, median_q2_tokens=15.0))
    assert "median Q2 response has 15 trained tokens" in find_warnings(short)[0]
    assert find_warnings(replace(data, distributions=replace(data.distributions, median_q2_tokens=16.0))) == ()
    assert find_warnings(_with_prune(short, min_tokens_to_prune=16)) == ()
    whole = TokenTotals(data.tokens.scored, data.tokens.before, data.tokens.before)
    assert find_warnings(replace(short, tokens=whole)) == ()


def test_kept_over_the_target_by_ties_is_told_by_how_much() -> None:
    """Up to three samples over are the method's own; more come from equal scores."""
    data = _quiet()
    kept = data.counts.kept
    assert find_warnings(replace(data, target=kept - 3)) == ()
    (warning,) = find_warnings(replace(data, target=kept - 40))
    assert f"{kept} samples are kept for a target of {kept - 40} (40 over): samples with equal scores" in warning


def test_other_reasons_for_missing_the_target_are_named() -> None:
    """A user's rule and an early stop are not called ties, and may also keep fewer."""
    data = replace(_quiet(), target=_quiet().counts.kept + 5)
    assert "(5 under): the quadrant rule 'm:f' decides" in find_warnings(_with_prune(data, quadrant_rule="m:f"))[0]
    assert "stopped after 10 steps" in find_warnings(_with_prune(data, bisect_max_iter=10))[0]


def test_vanished_categories_are_named_largest_first() -> None:
    """Also those that were rejected whole; of many, eight are named and the rest counted."""
    data = _quiet()
    gone = {f"c{i}": Counts(rejected=1, q1=i) for i in range(11)}
    (warning,) = find_warnings(replace(data, by_category={"kept": Counts(q2=1, kept=1), **gone}))
    assert warning.startswith("11 categories have no kept sample: 'c10' (11 read, 1 rejected), 'c9'")
    assert warning.endswith(", and 3 more.")


def test_many_rejected_are_told_with_the_most_common_reason() -> None:
    """Over 5% of the records read."""
    data = _quiet()
    counts = replace(data.counts, rejected=data.counts.scored, reasons={"bad_json": 1, "empty_response": 9})
    (warning,) = find_warnings(replace(data, counts=counts))
    assert "50% of the records read were rejected" in warning
    assert "'empty_response' (9)" in warning


def test_equal_scores_are_told() -> None:
    """All equal, and half equal, are different sentences."""
    equal = np.full(50, 0.5)
    lengths = np.full(50, 90)
    data = made_up_report((equal, equal, lengths))
    assert any("All samples have the same perplexity and the same entropy" in text for text in find_warnings(data))
    half = np.concatenate([equal, np.linspace(1, 2, 50)])
    data = made_up_report((half, np.linspace(0.1, 2, 100), np.full(100, 90)), keep_ratio=0.25)
    assert any(text.startswith("50 samples (50%) have the same perplexity") for text in find_warnings(data))


def test_a_model_that_finds_all_trivial_or_all_hard_is_told() -> None:
    """By the median perplexity."""
    nll, entropy, lengths = made_up_scores(correlation=0.0)
    assert "trivial" in find_warnings(made_up_report((nll / 1000, entropy, lengths), keep_ratio=0.25))[0]
    assert "hard" in find_warnings(made_up_report((nll + 6, entropy, lengths), keep_ratio=0.25))[0]


def test_another_strategy_is_told_and_quadrants_are_not_blamed() -> None:
    """Which one chose; the corners' overlap is then nobody's concern."""
    data = _with_prune(made_up_report(made_up_scores(correlation=0.93)), strategy="longest")
    (warning,) = find_warnings(data)
    assert "chosen by another strategy than Q-Tuning: the longest first" in warning
    assert "the shortest first" in find_warnings(_with_prune(data, strategy_order="lowest"))[0]
    assert find_warnings(_with_prune(data, strategy="q_tuning"))[0].startswith("The target of")


def test_short_responses_of_another_strategy_are_those_of_all() -> None:
    """Its tokens are pruned in every kept sample, so the median of all counts, not Q2's."""
    data = _with_prune(_quiet(), strategy="random")
    short = replace(data.distributions, num_tokens={"p50": 7.0}, median_q2_tokens=200.0)
    assert find_warnings(replace(data, distributions=short))[1].startswith("The median response has 7 trained tokens.")
    only_q2 = replace(data.distributions, median_q2_tokens=7.0)
    assert len(find_warnings(replace(data, distributions=only_q2))) == 1


def test_a_rule_labels_the_overlap_itself() -> None:
    """The sentence about the nearer corner is the method's."""
    data = made_up_report(made_up_scores(correlation=0.93))
    assert "nearer one" in find_warnings(data)[0]
    assert "nearer one" not in find_warnings(_with_prune(data, quadrant_rule="m:f"))[0]


def test_the_pipelines_own_warnings_come_first_and_nothing_twice() -> None:
    """The result can be stored back without doubling."""
    data = made_up_report(warnings=("The chat template is a plain one.",))
    found = find_warnings(data)
    assert found[0] == "The chat template is a plain one."
    assert len(found) == 2
    assert find_warnings(replace(data, warnings=found)) == found
