"""A sample's tokens in the terminal: by colour where there is one, else by the signs of `git diff --word-diff`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from qtune_service.report.data import ExampleToken, TokenState
from qtune_service.report.tokens import visible_text
from qtune_service.report.wording import count

STYLES: dict[TokenState, str] = {"prompt": "dim", "kept": "green", "removed": "red strike"}
SIGNS: dict[TokenState, tuple[str, str]] = {"prompt": ("", ""), "kept": ("{+", "+}"), "removed": ("[-", "-]")}
LEGEND: tuple[tuple[TokenState, str], ...] = (("prompt", "prompt"), ("kept", "trained on"), ("removed", "removed"))

INDENT = "  "


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of a sample is shown; None: all."""

    prompt_chars: int | None = None
    """Of each stretch of prompt: a quarter of it from the beginning, the rest from the end."""
    trained_tokens: int | None = None


def token_text(tokens: Iterable[ExampleToken], *, signs: bool, cut: Cut) -> Text:
    """A sample's text, indented. signs: tell tokens apart without colour."""
    text = Text(INDENT)
    for state, run in _runs(tokens, cut):
        before, after = SIGNS[state] if signs else ("", "")
        text.append(f"{before}{run}{after}".replace("\n", f"\n{INDENT}"), "" if signs else STYLES[state])
    text.rstrip()
    return text


def legend(*, signs: bool) -> Text:
    """What the colours, or signs, mean."""
    parts = []
    for state, meaning in LEGEND:
        before, after = SIGNS[state] if signs else ("", "")
        parts.append(Text(before + meaning + after, "" if signs else STYLES[state]))
    return Text("  ").join(parts)


def _runs(tokens: Iterable[ExampleToken], cut: Cut) -> Iterator[tuple[TokenState, str]]:
    """Stretches of tokens of one state."""
    left = cut.trained_tokens
    hidden = 0
    for state, group in groupby(tokens, lambda token: token.state):
        if state == "prompt":
            if left != 0:
                yield state, _shortened(visible_text("".join(token.text for token in group)), cut.prompt_chars)
            continue
        run = list(group)
        shown = run[:left]
        hidden += len(run) - len(shown)
        left = None if left is None else left - len(shown)
        if shown:
            yield state, _marked("".join(token.text for token in shown))
    if hidden:
        yield "prompt", f" … {count(hidden)} more trained tokens"


def _marked(text: str) -> str:
    """Line ends and tabs get a sign: they are tokens, and may be removed."""
    return visible_text(text).replace("\n", "⏎\n").replace("\t", "⇥\t")


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]} … {text[len(text) - (limit - head) :]}"
