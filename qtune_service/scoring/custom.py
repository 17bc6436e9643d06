"""An engine of the user's own, named `module:factory`: another inference engine, a server elsewhere, a test.

The factory is called with (ModelSpec, EngineSpec) in the process that scores, and gives a Scorer (see base.py). What
it gives is not trusted to be one: its parts are looked at once, and the shape of each answer every time, since scores
that do not fit their tokens would go unnoticed into the thresholds.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError
from qtune_service.importing import import_named
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.samples import scored_positions
from qtune_service.scoring.scorer import EngineInfo, Scorer, Watch, never

CONTRACT = "See Scorer in qtune_service/scoring/scorer.py."


def build_custom(model: ModelSpec, engine: EngineSpec) -> Scorer:
    """Call the factory that `engine.name` names. Raises SpecError or EngineError."""
    made = import_named(engine.name, "engine")(model, engine)
    missing = [name for name in ("score", "close") if not callable(getattr(made, name, None))]
    if not isinstance(getattr(made, "info", None), EngineInfo):
        missing.append("info (an EngineInfo)")
    if missing:
        raise EngineError(
            f"engine {engine.name} made an instance of {type(made).__name__}, which lacks {', '.join(missing)}",
            CONTRACT,
        )
    return CustomScorer(engine.name, made)


class CustomScorer:
    """A user's scorer whose answers are looked at."""

    def __init__(self, name: str, inner: Scorer) -> None:
        self._name, self._inner = name, inner
        self._can_stop = len(inspect.signature(inner.score).parameters) > 1

    @property
    def info(self) -> EngineInfo:
        """What the scorer says that it runs on."""
        return self._inner.info

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score, and check that there is one score for each scored token of each sample. Raises EngineError.

        A scorer that takes no `watch` is not stopped half way.
        """
        outcomes = list(self._inner.score(samples, watch) if self._can_stop else self._inner.score(samples))
        if len(outcomes) != len(samples):
            raise EngineError(f"engine {self._name} gave {len(outcomes)} answers for {len(samples)} samples", CONTRACT)
        for i, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            shapes = outcome.nll.shape, outcome.entropy.shape
            wanted = (len(scored_positions(sample)),)
            if shapes != (wanted, wanted):
                what = f"nll {shapes[0]} and entropy {shapes[1]} for sample {i}, which has {wanted[0]} scored tokens"
                raise EngineError(f"engine {self._name} gave {what}", CONTRACT)
        return outcomes

    def close(self) -> None:
        """Free what it holds."""
        self._inner.close()
