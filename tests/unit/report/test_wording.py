"""Tests of how numbers and names read."""

from __future__ import annotations

import math

import pytest

from qtune_service.report.text import count, duration, number, percent, shorten


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 10, "0%"), (1, 10_000, "<0.1%"), (15, 100, "15%"), (1, 40, "2.5%"), (9_999, 10_000, ">99.9%"), (7, 7, "100%")],
)
def test_shares_never_round_to_none_or_all(part: int, whole: int, text: str) -> None:
    """0% and 100% are shown only where they are exact."""
    assert percent(part, whole) == text


def test_a_share_of_nothing_is_a_dash() -> None:
    """There is no division by zero."""
    assert percent(0, 0) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (12_345.6, "12,346"), (-0.5, "\N{MINUS SIGN}0.5"), (math.inf, "∞"), (None, "\N{EN DASH}")],
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    """What is missing or infinite has a sign of its own."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_are_carried_over(seconds: float, text: str) -> None:
    """59.6 seconds are a minute, not sixty seconds."""
    assert duration(seconds) == text


def test_counts_have_separators() -> None:
    """Thousands are set apart."""
    assert count(1_234_567) == "1,234,567"


def test_long_names_keep_their_ends() -> None:
    """Files of one folder stay distinct, and the limit is the length."""
    assert shorten("data/train.jsonl", 16) == "data/train.jsonl"
    assert shorten("a/very/long/folder/train-00017.jsonl", 19) == "a/very…00017.jsonl"[:6] + "…" + "-00017.jsonl"
    assert len(shorten("x" * 500, 40)) == 40
