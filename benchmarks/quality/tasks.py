"""Tasks that a tiny model learns in minutes, with planted flaws, and clean rows held out.

Each row has a kind:

    normal   right, and worth learning
    trivial  right, and one of a few rows that come again and again
    rare     right, by an exception to the rule that the normal rows show: the misconception of a model that knows
             these alone
    noise    wrong: `uniform` has random answers, `systematic` those of a wrong rule that is always the same, `spans`
             a run of random letters in the middle of a right answer

    addition  `123+456=9750$`: three digits, the sum's lowest digit first (`addition-plain`: highest first)
    rewrite   `Rabcdef=fedcba$`: reverse, sort or shift six letters; whatever begins with h is copied (rare)
    long      the same with 24 letters, without sorting
    mixed     half of the rows of 6 letters with a wrong rule as noise, half of 24 with spans
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.spec import RunSpec

KINDS = ("normal", "trivial", "rare", "noise")
NUM_TEST = 500
SYMBOLS = "0123456789+=$RSUabcdefgh"
LETTERS = "abcdefgh"
COPIED = "h"
"""Texts that begin with it are left as they are."""
RARE_RATE = 0.03
HALF = 0.5
IGNORED = -100

Random = np.random.Generator
Pair = tuple[str, str]
Draw = Callable[[Random, str], Pair]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows, padded on the right."""

    ids: Any  # (N, T) int64 tensor
    labels: Any  # (N, T), -100 where not trained on
    real: Any  # (N, T) bool, where there is no padding

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[np.int64]) -> Examples:
        """Return some rows."""
        at = torch.from_numpy(np.asarray(index, np.int64))
        return Examples(self.ids[at], self.labels[at], self.real[at])

    @property
    def num_tokens(self) -> int:
        """Positions without padding: what a forward pass reads."""
        return int(self.real.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to learn from, and what to be measured by."""

    train: Examples
    kinds: NDArray[np.int64]  # (N,) places in KINDS
    tests: dict[str, Examples]


def encode(pairs: list[Pair], width: int) -> Examples:
    """Prompts and answers as ids (N, width); answers and their end are trained on."""
    place = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    rows = [[place[c] for c in prompt + answer + "$"] for prompt, answer in pairs]
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    prompts, sizes = (torch.tensor(counts)[:, None] for counts in ([len(p) for p, _ in pairs], [len(r) for r in rows]))
    at = torch.arange(width)
    real = at < sizes
    return Examples(ids, ids.masked_fill(~real | (at < prompts), IGNORED), real)


def planted(spec: RunSpec, rates: dict[str, float], draw: Draw, tested: dict[str, Draw] | None = None) -> Task:
    """Training rows of all kinds in random order, and clean rows that are not among them: of the kinds normal and
    rare, or of those that are told."""
    random = np.random.default_rng(spec.seed)
    kinds = random.choice(len(KINDS), spec.train_rows, p=[rates.get(kind, 0.0) for kind in KINDS])
    trained = [draw(random, KINDS[kind]) for kind in kinds]
    width = max(len(prompt + answer) + 1 for prompt, answer in trained)
    seen = {prompt for prompt, _ in trained}
    tests = {}
    for name, draw_clean in (tested or {kind: draw for kind in ("normal", "rare") if rates.get(kind)}).items():
        fresh: dict[str, str] = {}
        while len(fresh) < NUM_TEST:
            prompt, answer = draw_clean(random, "normal" if tested else name)
            if prompt not in seen:
                fresh[prompt] = answer
        tests[name] = encode(list(fresh.items()), width)
    return Task(encode(trained, width), kinds, tests)


# --- addition


def addition(spec: RunSpec) -> Task:
    """Return a task of sums of three digits."""
    step = 1 if spec.task == "addition-plain" else -1

    def draw(random: Random, kind: str) -> Pair:
        a, b = random.integers(0, 10 if kind == "trivial" else 1000, 2).tolist()
        total = a + b
        if kind == "noise":
            total = int(random.integers(0, 2000)) if spec.noise == "uniform" else without_carries(a, b)
        return f"{a:03}+{b:03}=", f"{total:04}"[::step]

    return planted(spec, {"noise": spec.noise_rate, "trivial": spec.trivial_rate, "normal": normal_rate(spec)}, draw)


def without_carries(a: int, b: int) -> int:
    """Add each digit for itself: the wrong rule."""
    return sum((a // unit + b // unit) % 10 * unit for unit in (1, 10, 100))


# --- rewriting


def rewriting(spec: RunSpec) -> Task:
    """Reverse, sort or shift letters."""
    draw = _rewriter(spec.noise, 24, "RU") if spec.task == "long" else _rewriter(spec.noise, 6, "RSU")
    rates = {"noise": spec.noise_rate, "trivial": spec.trivial_rate, "rare": RARE_RATE}
    return planted(spec, {**rates, "normal": normal_rate(spec) - RARE_RATE}, draw)


def mixed(spec: RunSpec) -> Task:
    """Short answers, noisy as a whole, and long ones, noisy in part."""
    tested = {"short": _rewriter("systematic", 6, "RSU"), "long": _rewriter("spans", 24, "RU")}

    def draw(random: Random, kind: str) -> Pair:
        return tested["short" if random.random() < HALF else "long"](random, kind)

    rates = {"noise": spec.noise_rate, "trivial": spec.trivial_rate, "normal": normal_rate(spec)}
    return planted(spec, rates, draw, tested)


def _rewriter(noise: str, size: int, rules: str) -> Draw:
    repeats = [_text(np.random.default_rng(99 + i), size) for i in range(40)]

    def draw(random: Random, kind: str) -> Pair:
        rule = str(random.choice(list(rules)))
        text = repeats[int(random.integers(len(repeats)))] if kind == "trivial" else _text(random, size)
        answer = rewritten(rule, text)
        if kind == "rare":
            text = answer = COPIED + text[1:]
        if kind == "noise":
            answer = _spoiled(random, noise, rules, rule, text)
        return f"{rule}{text}=", answer

    return draw


def rewritten(rule: str, text: str) -> str:
    """Apply the rule to a text that does not begin with h."""
    if rule == "R":
        return text[::-1]
    if rule == "S":
        return "".join(sorted(text))
    return "".join(LETTERS[(LETTERS.index(c) + 1) % len(LETTERS)] for c in text)


def _spoiled(random: Random, noise: str, rules: str, rule: str, text: str) -> str:
    if noise == "systematic":  # the next rule's answer
        return rewritten(rules[(rules.index(rule) + 1) % len(rules)], text)
    other, right, size = "".join(random.choice(list(LETTERS), len(text))), rewritten(rule, text), len(text)
    if noise == "uniform":
        return other
    start = int(random.integers(size // 2 + 1))
    return right[:start] + other[start : start + size // 2] + right[start + size // 2 :]


def _text(random: Random, size: int) -> str:
    """Letters, of which the first is not h."""
    return LETTERS[int(random.integers(7))] + "".join(random.choice(list(LETTERS), size - 1))


def normal_rate(spec: RunSpec) -> float:
    """Return the share of rows without noise and repeats."""
    return 1 - spec.noise_rate - spec.trivial_rate
