"""Tests of the choice and the bounds of example samples."""

from __future__ import annotations

from dataclasses import replace

from qtune_service.report.data import ExampleSample, TokenView
from qtune_service.report.examples import (
    MAX_PAGE_TOKENS,
    MAX_PER_QUADRANT,
    PROMPT_HEAD_CHARS,
    PROMPT_TAIL_CHARS,
    shown_examples,
    shown_samples,
)
from tests.report_data import example


def test_tokens_keep_their_state_and_scores() -> None:
    """The prompt is one run; kept and removed tokens are runs of their own with NLL, PPL and entropy."""
    (shown,) = shown_examples([example(("a", "b", "c"))])["Q2"]
    assert [run.css for run in shown.runs] == ["p", "k", "k", "r"]
    assert shown.runs[1].title == "NLL 0.5 · PPL 1.649 · entropy 1.25 · smoothed 1.5"
    assert (shown.num_trained, shown.num_removed) == (3, 1)


def test_tokens_of_dropped_samples_are_neither_kept_nor_removed() -> None:
    """They go whole, so green would be a lie; whatever the quadrant, for another strategy drops any."""
    for label in ("Q1", "Q2", "Q3", "Q4"):
        sample = replace(example(("a", "b", "c"), "Q2"), quadrant=label, kept=False)
        (shown,) = shown_examples([sample])[label]
        assert [run.css for run in shown.runs[1:]] == ["d", "d", "d"]
        assert shown.num_removed == 0


def test_samples_that_another_strategy_keeps_show_their_tokens() -> None:
    """A kept sample of Q1 has kept and removed tokens."""
    (shown,) = shown_examples([replace(example(("a", "b", "c"), "Q2"), quadrant="Q1")])["Q1"]
    assert [run.css for run in shown.runs[1:]] == ["k", "k", "r"]
    assert shown.num_removed == 1


def test_typical_samples_stand_before_borderline_ones() -> None:
    """By quadrant, and numbered as they stand on the page."""
    samples = [
        replace(example(("a",), "Q4", "s:1"), why="borderline"),
        example(("a",), "Q4", "s:2"),
        example(("a",), "Q1", "s:3"),
    ]
    assert [sample.sample_id for sample in shown_samples(samples)] == ["s:3", "s:2", "s:1"]
    shown = shown_examples(samples)
    assert [(e.at, e.sample.sample_id) for group in shown.values() for e in group] == [
        (0, "s:3"),
        (1, "s:2"),
        (2, "s:1"),
    ]


def test_long_samples_share_the_page_and_say_what_is_missing() -> None:
    """Short samples are whole; the long ones are cut to equal parts of what is left."""
    samples = [example(("x",) * 10), example(("x",) * 9_000), example(("x",) * 5_000)]
    short, long, other = shown_examples(samples)["Q2"]
    part = (MAX_PAGE_TOKENS - 10) // 2
    assert len(short.runs) == 1 + 10
    assert len(long.runs) == len(other.runs) == 1 + part + 1
    assert f"{9_000 - part:,} more tokens are not shown" in long.runs[-1].html
    assert long.num_trained == 9_000


def test_long_prompts_keep_both_ends() -> None:
    """The middle is left out, and its length said."""
    prompt = "A" * 5_000 + "B" * 5_000
    sample = ExampleSample("s", "s", 1, "Q4", 2, 1, (TokenView(prompt, "prompt"), TokenView("x", "kept", 1.0, 1.0)))
    head, gap, tail, _ = shown_examples([sample])["Q4"][0].runs
    assert (len(head.html), len(tail.html)) == (PROMPT_HEAD_CHARS, PROMPT_TAIL_CHARS)
    assert f"{10_000 - PROMPT_HEAD_CHARS - PROMPT_TAIL_CHARS:,} characters" in gap.html


def test_whitespace_is_kept_and_marked() -> None:
    """A line end stays a line end behind its sign; markup in a token is text."""
    (shown,) = shown_examples([example(("\n", "\t", "<b>", ""))])["Q2"]
    assert [run.html for run in shown.runs[1:]] == ["<i class=n></i>\n", "<i class=t></i>\t", "&lt;b&gt;", ""]
    assert shown.runs[-1].css == "k c"


def test_only_some_examples_a_quadrant_are_shown() -> None:
    """The first ones given."""
    shown = shown_examples([example(("a",), sample_id=f"s:{i}") for i in range(20)])["Q2"]
    assert [e.sample.sample_id for e in shown] == [f"s:{i}" for i in range(MAX_PER_QUADRANT)]
