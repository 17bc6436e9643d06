"""Which engine scores a model, and why.

`auto` takes vLLM where it is installed, of a supported version, and knows the model's architecture as a causal
language model; else the reference engine. An engine that was asked for by name is never replaced by another one, and
`module:factory` names one of the user's own (custom.py).

An engine of the user's own, named `module:factory`: another inference engine, a server elsewhere, a test.

The factory is called with (ModelSpec, EngineSpec) in the process that scores, and gives a Scorer (see base.py). What
it gives is not trusted to be one: its parts are looked at once, and the shape of each answer every time, since scores
that do not fit their tokens would go unnoticed into the thresholds.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.importing import import_named
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint
from qtune_service.scoring.process_environment import apply_environment, quiet_libraries
from qtune_service.scoring.scorer import EngineInfo, Scorer, Watch, never, scored_positions


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine and the reason for it, as a clause for the user to read."""

    name: str
    """`vllm`, `reference`, or the `module:factory` of a user's own."""
    reason: str


def choose_engine(model: ModelSpec, engine: EngineSpec) -> EngineChoice:
    """Choose the engine. Raises ModelError where the model is missing or no causal language model.

    `auto` imports vllm where it is installed, which takes seconds: call it in the process that will score.
    """
    if engine.name != "auto":
        return EngineChoice(engine.name, "it was asked for")
    from qtune_service.scoring.vllm.engine import check_version, installed_vllm

    checkpoint = read_checkpoint(model)
    try:
        version = check_version(installed_vllm())
        _check_vllm_runs(checkpoint, version)
    except (EngineError, ModelError) as error:
        return EngineChoice("reference", error.message.rstrip("."))
    return EngineChoice("vllm", f"vLLM {version} is installed and supports {checkpoint.architecture}")


def _check_vllm_runs(checkpoint: Checkpoint, version: str) -> None:
    from qtune_service.scoring.vllm.engine import check_architecture

    apply_environment()
    try:
        with quiet_libraries():
            check_architecture(checkpoint, version)
    except (ImportError, OSError) as error:  # a package it needs, or a system library, is missing
        raise EngineError(f"vLLM {version} is installed but does not start: {error}") from error


def build_scorer(model: ModelSpec, engine: EngineSpec) -> Scorer:
    """Load the model on the chosen engine; `scorer.info` says which it is and why."""
    choice = choose_engine(model, engine)
    if choice.name == "vllm":
        from qtune_service.scoring.vllm.engine import VllmScorer

        return VllmScorer(model, engine, choice.reason)
    if choice.name != "reference":
        return build_custom(model, engine)
    from qtune_service.scoring.reference import ReferenceScorer

    return ReferenceScorer(model, engine, choice.reason)


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
