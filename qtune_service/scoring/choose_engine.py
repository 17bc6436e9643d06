"""Which engine scores a model, and why.

`auto` takes vLLM where it is installed, of a supported version, and knows the model's architecture as a causal
language model; else the reference engine. An engine that was asked for by name is never replaced by another one, and
`module:factory` names one of the user's own (custom.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint
from qtune_service.scoring.process_environment import apply_environment, quiet_libraries
from qtune_service.scoring.scorer import Scorer


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
        from qtune_service.scoring.custom import build_custom

        return build_custom(model, engine)
    from qtune_service.scoring.reference import ReferenceScorer

    return ReferenceScorer(model, engine, choice.reason)
