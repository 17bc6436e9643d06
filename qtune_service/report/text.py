"""What a reader must know before using the result, in sentences with the numbers in them.

Each check is a function that yields at most one sentence; none of them changes anything.
"""

from __future__ import annotations

from collections.abc import Callable

from qtune_service.report.choice import other_strategy, prune_spec, quadrant_rule
from qtune_service.report.data import ReportData
from qtune_service.report.wording import count, number, percent, shorten

SHORT_RESPONSE = 16  # trained tokens; below, the token with the highest perplexity is often the very thing to learn
HIGH_REJECTED_SHARE = 0.05
TIES_WITHOUT_REPEATS = 3  # the corners' edges move together, so this many samples may enter at once
TRIVIAL_PERPLEXITY = 1.05
HARD_PERPLEXITY = 100.0
NAMES_SHOWN = 8
NAME_CHARS = 40


def find_warnings(data: ReportData) -> tuple[str, ...]:
    """The pipeline's own warnings, then what the numbers say. Safe to apply to its own result."""
    found = (check(data) for check in CHECKS)
    return tuple(dict.fromkeys([*data.warnings, *(sentence for sentence in found if sentence)]))


def _nothing_scored(data: ReportData) -> str | None:
    return "No sample was scored: every record was rejected." if data.counts.scored == 0 else None


def _another_strategy(data: ReportData) -> str | None:
    strategy = other_strategy(data)
    if strategy is None:
        return None
    return (
        f"The samples were chosen by another strategy than Q-Tuning: {strategy}. Quadrants and corners only tell where "
        "samples lie, not what becomes of them."
    )


def _overlapping_corners(data: ReportData) -> str | None:
    if data.thresholds is None or data.thresholds.alpha <= 0.5 or other_strategy(data) is not None:
        return None
    target, capacity, scored = data.target, data.disjoint_capacity, data.counts.scored
    alpha = _alpha(data.thresholds.alpha)
    nearer = "" if quadrant_rule(data) else " Samples in both corners are labelled by the nearer one."
    return (
        f"The target of {count(target)} samples ({percent(target, scored)}) needs alpha {alpha}, "
        f"where the two kept corners overlap; {percent(capacity, scored)} ({count(capacity)} samples) is the most that "
        f"disjoint corners hold.{nearer}"
    )


def _kept_is_not_target(data: ReportData) -> str | None:
    kept, target, prune = data.counts.kept, data.target, prune_spec(data)
    over = kept - target
    if over == 0:
        return None
    side = f"{count(abs(over))} {'over' if over > 0 else 'under'}"
    where = f"{count(kept)} samples are kept where {count(target)} were asked for ({side})"
    if prune.get("quadrant_rule"):
        return f"{where}: the quadrant rule {prune['quadrant_rule']!r} decides."
    if prune.get("bisect_max_iter") and other_strategy(data) is None:
        return f"{where}: the search for alpha was told to stop after {prune['bisect_max_iter']} steps."
    if over > TIES_WITHOUT_REPEATS:
        return f"{where}: samples with equal scores lie on the threshold, and all of them were taken."
    return None


def _short_responses(data: ReportData) -> str | None:
    is_other = other_strategy(data) is not None  # then tokens are removed from every kept sample, else from Q2's
    d = data.distributions
    median, which = (d.num_tokens.get("p50"), "") if is_other else (d.median_q2_tokens, "Q2 ")
    shortest = prune_spec(data).get("min_tokens_to_prune", 1)
    if median is None or median >= SHORT_RESPONSE or data.tokens.after >= data.tokens.before or median < shortest:
        return None
    return (
        f"The median {which}response has {number(median)} trained tokens. In answers this short the token with the "
        "highest perplexity is often the very thing to be learned; min_tokens_to_prune "
        f"({SHORT_RESPONSE}, for example) keeps them whole."
    )


def _vanished_categories(data: ReportData) -> str | None:
    gone = {name: c for name, c in data.by_category.items() if c.read > 0 and c.kept == 0}
    if not gone or data.counts.kept == 0:
        return None
    largest = sorted(gone.items(), key=lambda item: (-item[1].read, item[0]))
    named = ", ".join(
        f"{shorten(name, NAME_CHARS)!r} ({count(c.read)} read, {count(c.rejected)} rejected)"
        for name, c in largest[:NAMES_SHOWN]
    )
    more = f", and {count(len(gone) - NAMES_SHOWN)} more" if len(gone) > NAMES_SHOWN else ""
    subject = "1 category has" if len(gone) == 1 else f"{count(len(gone))} categories have"
    return f"{subject} no kept sample: {named}{more}."


def _many_rejected(data: ReportData) -> str | None:
    c = data.counts
    if c.scored == 0 or c.rejected <= HIGH_REJECTED_SHARE * c.read:
        return None
    reason, most = max(data.counts.reasons.items(), key=lambda item: item[1], default=("", 0))
    why = f"; the most common reason is {reason!r} ({count(most)})" if reason else ""
    share = f"{percent(c.rejected, c.read)} of the records read were rejected"
    return f"{share} ({count(c.rejected)} of {count(c.read)}){why}."


def _ties(data: ReportData) -> str | None:
    tie, scored = data.distributions.largest_tie, data.counts.scored
    if scored < 2 or tie * 2 < scored:
        return None
    if tie == scored and data.distributions.entropy.get("min") == data.distributions.entropy.get("max"):
        return "All samples have the same perplexity and the same entropy: there is nothing to choose by."
    share = f"{count(tie)} samples ({percent(tie, scored)})"
    return f"{share} have one and the same perplexity; the thresholds cannot tell them apart."


def _too_easy_or_too_hard(data: ReportData) -> str | None:
    median = data.distributions.perplexity.get("p50")
    if median is None or TRIVIAL_PERPLEXITY < median < HARD_PERPLEXITY:
        return None
    shown = number(median)
    if median <= TRIVIAL_PERPLEXITY:
        return f"The model finds most of this data trivial (median perplexity {shown}): it may have been trained on it."
    return (
        f"The model finds most of this data hard (median perplexity {shown}): its scores say little about which "
        "samples help. Score with the model that will be trained, and check the chat template."
    )


def _alpha(alpha: float) -> str:
    return f"{alpha:.2f}" if alpha >= 0.505 else f"{alpha:.4g}"  # never '0.50' for what is over a half


CHECKS: tuple[Callable[[ReportData], str | None], ...] = (
    _nothing_scored,
    _another_strategy,
    _overlapping_corners,
    _kept_is_not_target,
    _short_responses,
    _vanished_categories,
    _many_rejected,
    _ties,
    _too_easy_or_too_hard,
)
