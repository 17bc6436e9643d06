"""Texts of a report: number formats, the warnings about a result, and summary_statistics.json.

Numbers have separators and four significant digits. A share is 0% or 100% only if it is exactly that, so that a reader
can trust it. Each warning is a check that returns at most one sentence and changes nothing.

summary_statistics.json has the numbers of a job for scripts. `stage1` and `stage2` use the names of other tools.
Infinite thresholds and perplexities are null, since JSON has no infinity. Ratios are over scored samples, or over the
trained tokens of kept samples, and null if there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from qtune_service.report.data import Counts, ReportData, other_strategy, prune_spec, quadrant_rule
from qtune_service.selection.plane import Thresholds

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
SHORT_RESPONSE = 16  # trained tokens; below, the token with the highest perplexity is often the one to learn
HIGH_REJECTED_SHARE = 0.05
TIES_WITHOUT_REPEATS = 3  # the edges of both corners move together, so this many samples may enter in one step
TRIVIAL_PERPLEXITY = 1.05
HARD_PERPLEXITY = 100.0
NAMES_SHOWN = 8
NAME_CHARS = 40


def shorten(text: str, limit: int) -> str:
    """Cut a text in the middle, to at most `limit` characters: paths differ at their ends."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def file_name(path: str) -> str:
    """Return the last part of a path or URI."""
    return path.rstrip("/").rpartition("/")[2] or path


def count(value: float) -> str:
    """Format a number with separators: 12345 -> '12,345'."""
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """Format a share with at most one decimal: '15%', '2.5%', '<0.1%', or a dash if `whole` is zero."""
    if whole <= 0:
        return NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    if 99.9 < share < 100:
        return ">99.9%"
    return f"{share:.1f}".removesuffix(".0") + "%"


def number(value: float | None) -> str:
    """Format a number with four significant digits, without exponent below a million. A missing one is a dash."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if 1e4 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("-", MINUS)


def rank(value: float) -> str:
    """Format a rank in (0, 1) with three digits: '0.507'."""
    return f"{value:.3f}"


def duration(seconds: float) -> str:
    """Format seconds as '0.4 s', '12 s', '3 min 05 s' or '2 h 10 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def find_warnings(data: ReportData) -> tuple[str, ...]:
    """Return the pipeline's own warnings, then those of the numbers. Applied to its own result, it adds nothing."""
    found = (check(data) for check in CHECKS)
    return tuple(dict.fromkeys([*data.warnings, *(sentence for sentence in found if sentence)]))


def _nothing_scored(data: ReportData) -> str | None:
    return "No sample was scored: every record was rejected." if data.counts.scored == 0 else None


def _another_strategy(data: ReportData) -> str | None:
    strategy = other_strategy(data)
    if strategy is None:
        return None
    return (
        f"The samples were chosen by another strategy than Q-Tuning: {strategy}. Quadrants and corners describe the "
        "scores of samples, and do not decide which are kept."
    )


def _overlapping_corners(data: ReportData) -> str | None:
    if data.thresholds is None or data.thresholds.alpha <= 0.5 or other_strategy(data) is not None:
        return None
    target, capacity, scored = data.target, data.disjoint_capacity, data.counts.scored
    alpha = _alpha(data.thresholds.alpha)
    nearer = "" if quadrant_rule(data) else " Samples in both corners are labelled by the nearer one."
    return (
        f"The target of {count(target)} samples ({percent(target, scored)}) requires alpha {alpha}, where the two kept "
        f"corners overlap. Disjoint corners hold at most {percent(capacity, scored)} "
        f"({count(capacity)} samples).{nearer}"
    )


def _kept_is_not_target(data: ReportData) -> str | None:
    kept, target, prune = data.counts.kept, data.target, prune_spec(data)
    over = kept - target
    if over == 0:
        return None
    side = f"{count(abs(over))} {'over' if over > 0 else 'under'}"
    where = f"{count(kept)} samples are kept for a target of {count(target)} ({side})"
    if prune.get("quadrant_rule"):
        return f"{where}: the quadrant rule {prune['quadrant_rule']!r} decides."
    if prune.get("bisect_max_iter") and other_strategy(data) is None:
        return f"{where}: the search for alpha stopped after {prune['bisect_max_iter']} steps (bisect_max_iter)."
    if over > TIES_WITHOUT_REPEATS:
        return f"{where}: samples with equal scores are on the threshold, and all of them are kept."
    return None


def _short_responses(data: ReportData) -> str | None:
    is_other = other_strategy(data) is not None  # then tokens are removed from every kept sample, else from Q2's
    d = data.distributions
    median, which = (d.num_tokens.get("p50"), "") if is_other else (d.median_q2_tokens, "Q2 ")
    shortest = prune_spec(data).get("min_tokens_to_prune", 1)
    if median is None or median >= SHORT_RESPONSE or data.tokens.after >= data.tokens.before or median < shortest:
        return None
    return (
        f"The median {which}response has {number(median)} trained tokens. In responses this short, the token with the "
        "highest perplexity is often the one to learn. To keep them whole, set min_tokens_to_prune "
        f"({SHORT_RESPONSE}, for example)."
    )


def _lost_end_of_turn(data: ReportData) -> str | None:
    if not data.lost_end_of_turn:
        return None
    pruned, kind = (data.counts.q2, "Q2") if other_strategy(data) is None else (data.counts.kept, "kept")
    share = (
        f"{count(data.lost_end_of_turn)} of {count(pruned)} {kind} samples ({percent(data.lost_end_of_turn, pruned)})"
    )
    return (
        f"An end-of-turn token left the loss in {share}, because keep_end_of_turn is off. A model that is not trained "
        "to stop does not stop."
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
    why = f" The most common reason is {reason!r} ({count(most)})." if reason else ""
    share = f"{percent(c.rejected, c.read)} of the records read were rejected"
    return f"{share} ({count(c.rejected)} of {count(c.read)}).{why}"


def _ties(data: ReportData) -> str | None:
    tie, scored = data.distributions.largest_tie, data.counts.scored
    if scored < 2 or tie * 2 < scored:
        return None
    if tie == scored and data.distributions.entropy.get("min") == data.distributions.entropy.get("max"):
        return "All samples have the same perplexity and the same entropy, so scores cannot rank them."
    share = f"{count(tie)} samples ({percent(tie, scored)})"
    return f"{share} have the same perplexity, so thresholds cannot separate them."


def _too_easy_or_too_hard(data: ReportData) -> str | None:
    median = data.distributions.perplexity.get("p50")
    if median is None or TRIVIAL_PERPLEXITY < median < HARD_PERPLEXITY:
        return None
    shown = number(median)
    if median <= TRIVIAL_PERPLEXITY:
        return (
            f"Most of this data is trivial for the model (median perplexity {shown}). It may have been trained on it."
        )
    return (
        f"Most of this data is hard for the model (median perplexity {shown}), so its scores say little about which "
        "samples help. Score with the model that will be trained, and check the chat template."
    )


def _alpha(alpha: float) -> str:
    return f"{alpha:.2f}" if alpha >= 0.505 else f"{alpha:.4g}"  # never '0.50' for a number over a half


CHECKS: tuple[Callable[[ReportData], str | None], ...] = (
    _nothing_scored,
    _another_strategy,
    _overlapping_corners,
    _kept_is_not_target,
    _short_responses,
    _lost_end_of_turn,
    _vanished_categories,
    _many_rejected,
    _ties,
    _too_easy_or_too_hard,
)


def summary_statistics(data: ReportData) -> dict[str, Any]:
    """Return plain data for a strict JSON encoder."""
    return {
        "title": data.title,
        "created_at": data.created_at,
        "counts": data.counts.as_dict(),
        "stage1": _stage1(data),
        "stage2": _stage2(data),
        "distributions": _distributions(data),
        "by_source": _tables(data.by_source),
        "by_category": _tables(data.by_category),
        "rejected": dict(sorted(data.counts.reasons.items(), key=lambda item: (-item[1], item[0]))),
        "seconds": {stage: round(seconds, 3) for stage, seconds in data.seconds.items()},
        "warnings": list(find_warnings(data)),
    }


def _stage1(data: ReportData) -> dict[str, Any]:
    c = data.counts
    return {
        **{f"{label}_count": value for label, value in c.as_dict().items() if label.startswith("Q")},
        "actual_keep_ratio": _ratio(c.kept, c.scored),
        "target_keep_ratio": data.spec.get("prune", {}).get("sample_keep_ratio"),
        "target_count": data.target,
        "disjoint_capacity_count": data.disjoint_capacity,
        "disjoint_capacity_ratio": _ratio(data.disjoint_capacity, c.scored),
        "thresholds": _thresholds(data.thresholds),
    }


def _stage2(data: ReportData) -> dict[str, Any]:
    t = data.tokens
    return {
        "total_tokens_before": t.before,
        "total_tokens_after": t.after,
        "token_compression_ratio": _ratio(t.after, t.before),
        "total_tokens_scored": t.scored,
        "trained_share_of_scored_tokens": _ratio(t.after, t.scored),
        "median_q2_tokens": data.distributions.median_q2_tokens,
        "samples_without_end_of_turn": data.lost_end_of_turn,
    }


def _distributions(data: ReportData) -> dict[str, Any]:
    d = data.distributions
    return {
        "perplexity": {name: _finite(value) for name, value in d.perplexity.items()},
        "mean_entropy": {name: _finite(value) for name, value in d.entropy.items()},
        "num_tokens": dict(d.num_tokens),
        "rank_correlation": d.rank_correlation,
        "largest_tie_count": d.largest_tie,
    }


def _tables(groups: Mapping[str, Counts]) -> dict[str, dict[str, Any]]:
    return {name: _row(c) for name, c in groups.items()}


def _row(c: Counts) -> dict[str, Any]:
    tokens = {"tokens_before": c.tokens_before, "tokens_after": c.tokens_after}
    return {**c.as_dict(), "keep_ratio": _ratio(c.kept, c.scored), **tokens, "rejected_reasons": dict(c.reasons)}


def _thresholds(t: Thresholds | None) -> dict[str, float | None] | None:
    if t is None:
        return None
    names = ("alpha", "ppl_low", "ppl_high", "ent_low", "ent_high")
    return {name: _finite(getattr(t, name)) for name in names}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
