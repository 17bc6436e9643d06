"""Example samples of the report: the choice of samples, and their tokens as runs of HTML, within fixed limits.

The limits are on samples a quadrant, trained tokens a page, and characters a prompt or token, so a page stays small
for any data. A prompt is one run of text without its middle, and the page says how much is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from qtune_service.report.data import ExampleSample, TokenView
from qtune_service.report.text import count, number
from qtune_service.report.token_view import visible_text

MAX_PER_QUADRANT = 8
MAX_PAGE_TOKENS = 3_000
MAX_TOKEN_CHARS = 40
PROMPT_HEAD_CHARS, PROMPT_TAIL_CHARS = 400, 1_000

RunState = Literal["prompt", "kept", "removed", "dropped", "omitted"]
_SHORT_STATE = {"prompt": "p", "kept": "k", "removed": "r", "dropped": "d", "omitted": "o"}  # CSS classes, once a token


@dataclass(frozen=True, slots=True)
class Run:
    """A run of text: one trained token, or a whole prompt turn."""

    html: Markup
    css: str
    title: str


@dataclass(frozen=True, slots=True)
class ShownExample:
    """A sample with its runs, within the limits of the page."""

    sample: ExampleSample
    at: int
    """Its index among the page's examples."""
    runs: tuple[Run, ...]
    num_trained: int
    num_removed: int


def shown_samples(samples: Sequence[ExampleSample]) -> list[ExampleSample]:
    """Return the examples of a page by quadrant, the typical ones first, else in the given order."""
    chosen: dict[str, list[ExampleSample]] = {}
    for sample in samples:
        group = chosen.setdefault(sample.quadrant, [])
        if len(group) < MAX_PER_QUADRANT:
            group.append(sample)
    return [sample for _, group in sorted(chosen.items()) for sample in sorted(group, key=lambda s: s.why != "typical")]


def shown_examples(samples: Sequence[ExampleSample]) -> dict[str, list[ShownExample]]:
    """Return the examples of a page by quadrant, as runs."""
    chosen = shown_samples(samples)
    budget = _token_budget([len(trained_tokens(sample)) for sample in chosen])
    shown: dict[str, list[ShownExample]] = {}
    for at, sample in enumerate(chosen):
        shown.setdefault(sample.quadrant, []).append(_show(sample, at, budget))
    return shown


def _token_budget(lengths: Sequence[int]) -> int:
    """Return the largest limit on a sample's tokens that keeps the page's: short samples leave room for long ones."""
    left = MAX_PAGE_TOKENS
    for index, length in enumerate(sorted(lengths)):
        fair = left // (len(lengths) - index)
        if length > fair:
            return fair
        left -= length
    return MAX_PAGE_TOKENS


def trained_tokens(sample: ExampleSample) -> list[TokenView]:
    """Return the tokens that are trained on, or would be if the sample were kept whole."""
    return [token for token in sample.tokens if token.state != "prompt"]


def _show(sample: ExampleSample, at: int, budget: int) -> ShownExample:
    trained = trained_tokens(sample)
    removed = sum(token.state == "removed" for token in trained) if sample.kept else 0
    runs = tuple(_runs(sample.tokens, budget, dropped=not sample.kept))
    return ShownExample(sample, at, runs, len(trained), removed)


def _runs(tokens: Iterable[TokenView], budget: int, *, dropped: bool) -> Iterable[Run]:
    prompt: list[str] = []
    shown = hidden = 0
    for token in tokens:
        if token.state == "prompt":
            if shown < budget:
                prompt.append(token.text)
            continue
        if prompt:
            yield from _prompt_runs("".join(prompt))
            prompt = []
        if shown == budget:
            hidden += 1
            continue
        shown += 1
        yield _run(_cut(token.text), "dropped" if dropped else token.state, _title(token))
    if prompt:
        yield from _prompt_runs("".join(prompt))
    if hidden:
        yield _run(f" … {count(hidden)} more tokens are not shown", "omitted")


def _prompt_runs(text: str) -> Iterable[Run]:
    left_out = len(text) - PROMPT_HEAD_CHARS - PROMPT_TAIL_CHARS
    if left_out <= 0:
        yield _run(text, "prompt")
        return
    yield _run(text[:PROMPT_HEAD_CHARS], "prompt")
    yield _run(f" … {count(left_out)} characters are not shown … ", "omitted")
    yield _run(text[-PROMPT_TAIL_CHARS:], "prompt")


def _run(text: str, state: RunState, title: str = "") -> Run:
    # CSS draws the signs of line ends and tabs, so that copied text is the real text.
    html = (
        escape(visible_text(text)).replace("\n", Markup("<i class=n></i>\n")).replace("\t", Markup("<i class=t></i>\t"))
    )
    css = _SHORT_STATE[state] + ("" if text else " c")  # c: continues the character of the token before
    return Run(html, css, title)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TOKEN_CHARS else text[: MAX_TOKEN_CHARS - 1] + "…"


def _title(token: TokenView) -> str:
    parts = []
    if token.nll is not None:
        parts = [f"NLL {number(token.nll)}", f"PPL {number(math.exp(min(token.nll, 700.0)))}"]
    if token.entropy is not None:
        parts.append(f"entropy {number(token.entropy)}")
    if token.score is not None:
        parts.append(f"smoothed {number(token.score)}")
    return " · ".join(parts)


def token_runs(sample: ExampleSample, max_tokens: int) -> tuple[Run, ...]:
    """Return the runs of a kept sample with at most `max_tokens` trained tokens, for pages with their own limits."""
    return tuple(_runs(sample.tokens, max_tokens, dropped=False))
