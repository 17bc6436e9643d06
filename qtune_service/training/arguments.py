"""The arguments of Q-Tuning in a training script: `QTuningArguments`, and `--enable-q-tuning` with its flags.

Fields that jobs have too take their defaults, limits and help from PruneSpec in config.py.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import ValidationError

from qtune_service.config import PruneSpec
from qtune_service.errors import SpecError
from qtune_service.spec_files import error_text

FLAGS = {"sample_keep_ratio": float, "token_keep_ratio": float, "neighbor_lambda": float, "bisect_max_iter": int}
"""Fields with a flag, and the types of their values."""


OWN = ("warmup_steps", "stop_token_ids")
"""Fields that jobs do not have."""


def _default(name: str) -> Any:
    return PruneSpec.model_fields[name].default


@dataclass(frozen=True, slots=True)
class QTuningArguments:
    """Arguments of Q-Tuning in training. Fields without a text are those of PruneSpec, for each global batch.

    Raises SpecError for a value out of range.
    """

    sample_keep_ratio: float = _default("sample_keep_ratio")
    token_keep_ratio: float = _default("token_keep_ratio")
    neighbor_lambda: float = _default("neighbor_lambda")
    bisect_max_iter: int | None = 10
    """Most steps of the bisection for the thresholds, as in the paper; None runs until exact."""
    min_tokens_to_prune: int = _default("min_tokens_to_prune")
    """Samples with fewer trained tokens keep all of them. Short answers need it: 16 is a good choice for them."""
    token_strategy: str = _default("token_strategy")
    keep_end_of_turn: bool = _default("keep_end_of_turn")
    """Never remove the last token of a trained span, nor one of `stop_token_ids`."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens at which generation stops. `enable_q_tuning` takes those of the model and of the tokenizer by default."""
    warmup_steps: int = 0
    """First steps that keep random samples, whole, and score none. A model that cannot do the task yet needs them: with
    random samples it learns more than with its own choice (docs/reference/quality.md, Recipe)."""
    seed: int = _default("seed")
    """Seed of the draws of warm-up, and of the token strategy `random`."""

    def __post_init__(self) -> None:
        """Check the limits of PruneSpec."""
        try:
            PruneSpec.model_validate({name: value for name, value in asdict(self).items() if name not in OWN})
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            name = wrong["loc"][0]
            raise SpecError(f"{name} is {wrong['input']!r}", f"{error_text(wrong['msg'])}.") from error
        if self.warmup_steps < 0:
            raise SpecError(f"warmup_steps is {self.warmup_steps!r}", "Input should be greater than or equal to 0.")


def add_q_tuning_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add `--enable-q-tuning` and five flags of the method; `q_tuning_arguments` reads them."""
    group = parser.add_argument_group("Q-Tuning", "Ratios are of each global batch.")
    group.add_argument(
        "--enable-q-tuning", action="store_true", default=False, help="Prune every batch with the current model."
    )
    for name, kind in FLAGS.items():
        text = str(PruneSpec.model_fields[name].description).partition(" By default")[0]
        default = getattr(QTuningArguments(), name)
        group.add_argument(
            f"--q-tuning-{name.replace('_', '-')}", type=kind, default=default, help=f"{text} [%(default)s]"
        )
    group.add_argument(
        "--q-tuning-keep-end-of-turn",
        action=argparse.BooleanOptionalAction,
        default=_default("keep_end_of_turn"),
        help="Never remove the last token of a trained span, so that the model learns to stop.",
    )
    return parser


def q_tuning_arguments(parsed: Any) -> QTuningArguments | None:
    """Return the arguments in a parsed namespace; None if Q-Tuning is not enabled. Raises SpecError."""
    if not getattr(parsed, "enable_q_tuning", False):
        return None
    names = (field.name for field in fields(QTuningArguments))
    prefix = "q_tuning_"
    given = {name: getattr(parsed, prefix + name) for name in names if hasattr(parsed, prefix + name)}
    return QTuningArguments(**given)
