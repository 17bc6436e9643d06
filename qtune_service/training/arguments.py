"""The arguments of Q-Tuning in a training script: `--enable-q-tuning` and what goes with it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from qtune_service.errors import SpecError
from qtune_service.selection.token_masks import TOKEN_STRATEGIES


@dataclass(frozen=True, slots=True)
class QTuningArguments:
    """Ratios of Q-Tuning in training. Defaults are the paper's. Raises SpecError where one is out of range."""

    sample_keep_ratio: float = 0.5
    """Share of each global batch that is trained on, in (0, 1]."""
    token_keep_ratio: float = 0.7
    """Share of the tokens of each Q2 sample that stay in the loss, in (0, 1]."""
    neighbor_lambda: float = 0.5
    """Weight of the neighbours in a token's score, in [0, 1]."""
    bisect_max_iter: int | None = 10
    """Steps of the bisection; None goes on until it is exact."""
    min_tokens_to_prune: int = 1
    """Samples with fewer trained tokens keep all of them. Short answers need it: 16 is a good choice for them."""
    token_strategy: str = "neighbor"
    """How tokens of Q2 samples are chosen; see selection/token_masks.py."""
    warmup_steps: int = 0
    """First steps that keep random samples, whole, and score none. A model that cannot do the task yet needs them: what
    it would choose teaches it less than random samples do (docs/reference/quality.md, Recipe)."""
    seed: int = 0
    """Of the draws of warm-up, and of the token strategy `random`."""

    def __post_init__(self) -> None:
        ranges = {
            "sample_keep_ratio": 0 < self.sample_keep_ratio <= 1,
            "token_keep_ratio": 0 < self.token_keep_ratio <= 1,
            "neighbor_lambda": 0 <= self.neighbor_lambda <= 1,
            "bisect_max_iter": self.bisect_max_iter is None or self.bisect_max_iter >= 1,
            "min_tokens_to_prune": self.min_tokens_to_prune >= 1,
            "token_strategy": self.token_strategy in TOKEN_STRATEGIES,
            "warmup_steps": self.warmup_steps >= 0,
        }
        hint = f"Ratios are in (0, 1], neighbor_lambda in [0, 1], token_strategy one of {', '.join(TOKEN_STRATEGIES)}."
        for name, is_right in ranges.items():
            if not is_right:
                raise SpecError(f"{name} is {getattr(self, name)!r}", hint)


def add_q_tuning_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add `--enable-q-tuning` and the method's four arguments; `q_tuning_arguments` reads them."""
    d = QTuningArguments()
    group = parser.add_argument_group("Q-Tuning")
    group.add_argument(
        "--enable-q-tuning", action="store_true", default=False, help="Prune every batch with the current model."
    )
    group.add_argument(
        "--q-tuning-sample-keep-ratio",
        type=float,
        default=d.sample_keep_ratio,
        help="Share of each global batch that is trained on. [%(default)s]",
    )
    group.add_argument(
        "--q-tuning-token-keep-ratio",
        type=float,
        default=d.token_keep_ratio,
        help="Share of the tokens of each Q2 sample that stay in the loss. [%(default)s]",
    )
    group.add_argument(
        "--q-tuning-neighbor-lambda",
        type=float,
        default=d.neighbor_lambda,
        help="Weight of the neighbours in a token's score. [%(default)s]",
    )
    group.add_argument(
        "--q-tuning-bisect-max-iter",
        type=int,
        default=d.bisect_max_iter,
        help="Steps of the bisection for the thresholds. [%(default)s]",
    )
    return parser


def q_tuning_arguments(parsed: Any) -> QTuningArguments | None:
    """What a parsed namespace says; None where Q-Tuning is not enabled. Raises SpecError."""
    if not getattr(parsed, "enable_q_tuning", False):
        return None
    names = (field.name for field in fields(QTuningArguments))
    prefix = "q_tuning_"
    given = {name: getattr(parsed, prefix + name) for name in names if hasattr(parsed, prefix + name)}
    return QTuningArguments(**given)
