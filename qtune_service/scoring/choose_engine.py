"""Choose and build the engine that scores a model.

`auto` selects vLLM if it is installed in a supported version and supports the model's architecture as a causal language
model, else the reference engine, unless the job sets `engine.vllm`. An engine requested by name is never replaced.

`module:factory` names a user's engine: another inference engine, a remote server, a test. The factory is called with
(ModelSpec, EngineSpec) in the scoring process and returns a Scorer (scorer.py). Its attributes are checked once and the
shape of every result each time, because scores that do not match their tokens would silently change the thresholds.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.importing import import_named
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint
from qtune_service.scoring.process_environment import apply_environment, quiet_libraries
from qtune_service.scoring.scorer import EngineInfo, FlatScores, Scorer, SteppedScorer, Watch, flat_positions, never


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine and the reason for choosing it, as a clause for the user."""

    name: str
    """`vllm`, `reference`, or `module:factory` of a user's engine."""
    reason: str


def choose_engine(model: ModelSpec, engine: EngineSpec) -> EngineChoice:
    """Choose the engine. Raises ModelError for a missing model or a model that is not causal.

    `auto` imports vllm if it is installed, which takes seconds: call this in the scoring process.
    """
    if engine.name != "auto":
        return EngineChoice(engine.name, "it was requested")
    from qtune_service.scoring.vllm.engine import check_version, installed_vllm

    checkpoint = read_checkpoint(model)
    try:
        version = check_version(installed_vllm())
        _check_vllm_runs(checkpoint, version)
    except (EngineError, ModelError) as error:
        if engine.vllm:
            raise EngineError(
                f"engine.vllm sets {', '.join(sorted(engine.vllm))}, and vLLM cannot be used: {error.message}",
                error.hint,
            ) from error
        return EngineChoice("reference", error.message.rstrip("."))
    return EngineChoice("vllm", f"vLLM {version} is installed and supports {checkpoint.architecture}")


def _check_vllm_runs(checkpoint: Checkpoint, version: str) -> None:
    from qtune_service.scoring.vllm.engine import check_architecture

    apply_environment()
    try:
        with quiet_libraries():
            check_architecture(checkpoint, version)
    except (ImportError, OSError) as error:  # a missing package or system library
        raise EngineError(f"vLLM {version} is installed but does not start: {error}") from error


def build_scorer(model: ModelSpec, engine: EngineSpec) -> Scorer:
    """Load the model on the chosen engine. `scorer.info` reports the engine and the reason."""
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
    """Call the factory named by `engine.name`. Raises SpecError or EngineError."""
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
    """Wrapper that checks the results of a user's scorer. The checks are a step of their own, beside the engine."""

    def __init__(self, name: str, inner: Scorer) -> None:
        self._name, self._inner = name, inner
        self._can_stop = len(inspect.signature(inner.score).parameters) > 1

    @property
    def info(self) -> EngineInfo:
        """Return the engine information of the scorer."""
        return self._inner.info

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score, and check that each scored token has one score. Raises EngineError.

        A scorer without a `watch` parameter runs to its end.
        """
        prepared = self.prepare(samples)
        return self.finish(prepared, self.run(prepared, watch)).rows()

    def prepare(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], Any]:
        """Prepare a call of a scorer that can; see `SteppedScorer`."""
        return samples, self._inner.prepare(samples) if isinstance(self._inner, SteppedScorer) else None

    def run(self, prepared: tuple[Sequence[Sample], Any], watch: Watch = never) -> Any:
        """Score; see `SteppedScorer`."""
        samples, inner = prepared
        if isinstance(self._inner, SteppedScorer):
            return self._inner.run(inner, watch)
        return list(self._inner.score(samples, watch) if self._can_stop else self._inner.score(samples))

    def finish(self, prepared: tuple[Sequence[Sample], Any], result: Any) -> FlatScores:
        """Check the scores of a call; see `SteppedScorer`."""
        samples, inner = prepared
        wanted = np.diff(flat_positions(samples)[1])
        if isinstance(self._inner, SteppedScorer):
            scores = self._inner.finish(inner, result)
            ends = scores.offsets
            if scores.values.shape != (ends[-1], 2) or not np.array_equal(np.diff(ends), wanted):
                what = f"{scores.values.shape} scores with {len(ends) - 1} samples, which have {wanted.sum()} in all"
                raise EngineError(f"engine {self._name} gave {what}", CONTRACT)
            return scores
        if len(result) != len(samples):
            raise EngineError(f"engine {self._name} gave {len(result)} answers for {len(samples)} samples", CONTRACT)
        for i, (outcome, count) in enumerate(zip(result, wanted.tolist(), strict=True)):
            shapes = outcome.nll.shape, outcome.entropy.shape
            if shapes != ((count,), (count,)):
                what = f"nll {shapes[0]} and entropy {shapes[1]} for sample {i}, which has {count} scored tokens"
                raise EngineError(f"engine {self._name} gave {what}", CONTRACT)
        return FlatScores.of(result)

    def close(self) -> None:
        """Release the scorer's resources."""
        self._inner.close()
