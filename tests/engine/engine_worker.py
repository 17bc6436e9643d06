"""A vLLM engine in a process of its own: a process holds one engine for life."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.core.metrics import Sample, TokenScores
from qtune_service.scoring.base import EngineInfo, Watch, never

T = TypeVar("T")

_scorer: Any = None  # in a worker process: its engine


class EngineWorker:
    """A `Scorer` on vLLM in a process of its own, where functions can also be called."""

    def __init__(self, model: ModelSpec, engine: EngineSpec) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._model, self._engine = model, engine
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        """What the engine runs on; starts it."""
        if self._info is None:
            self._info = self.call(load, self._model, self._engine)
        return self._info

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score there; starts the engine."""
        assert self.info
        return self.call(score, list(samples), watch)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function there, with or without the engine started; its error is raised here."""
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        """Stop the engine and the process."""
        self.call(close)
        self._pool.shutdown()


def load(model: ModelSpec, engine: EngineSpec) -> EngineInfo:
    """Start vLLM in this process."""
    global _scorer  # noqa: PLW0603 - the process exists to hold it
    from qtune_service.scoring.vllm import VllmScorer

    _scorer = VllmScorer(model, engine)
    info: EngineInfo = _scorer.info
    return info


def score(samples: Sequence[Sample], watch: Watch) -> list[TokenScores]:
    """Score in this process."""
    scores: list[TokenScores] = _scorer.score(samples, watch)
    return scores


def cached_tokens() -> int:
    """Tokens that the last call took from the prefix cache."""
    return int(_scorer.cached_tokens)


def fail_in_next_call() -> None:
    """Let the engine compute one step of the next call, and then raise with requests still in it."""
    engine = _scorer._llm.llm_engine
    step = engine.step

    def failing_step() -> None:
        engine.step = step
        step()
        raise RuntimeError("the device is gone")

    engine.step = failing_step


def close() -> None:
    """Stop the engine, if there is one; twice, because that must be harmless."""
    if _scorer is not None:
        _scorer.close()
        _scorer.close()


def registered_architectures() -> tuple[list[str], list[str], list[str]]:
    """Architectures of vLLM itself, the causal ones among them, and all that are registered with its plugins loaded."""
    from vllm.model_executor.models.registry import _VLLM_MODELS, ModelRegistry
    from vllm.plugins import load_general_plugins

    from qtune_service.scoring.plugin import causal_architectures

    load_general_plugins()
    return sorted(_VLLM_MODELS), causal_architectures(), sorted(ModelRegistry.get_supported_archs())
