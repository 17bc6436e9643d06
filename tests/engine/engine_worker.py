"""An engine in a process of its own: a process holds one engine for life."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo, Watch, never

T = TypeVar("T")

_scorer: Any = None  # in a worker process: its engine


class EngineWorker:
    """A `Scorer` in a process of its own, where functions can also be called. It is vLLM unless the spec names another.

    environment: variables of the process.
    """

    def __init__(self, model: ModelSpec, engine: EngineSpec, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=set_environment, initargs=(environment or {},))
        self._model, self._engine = model, engine
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        """Start the engine and return its information."""
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


def set_environment(environment: Mapping[str, str]) -> None:
    """Set variables in this process."""
    os.environ.update(environment)


def load(model: ModelSpec, engine: EngineSpec) -> EngineInfo:
    """Start the engine in this process."""
    global _scorer  # noqa: PLW0603 - the process exists to hold it
    if engine.name == "reference":
        from qtune_service.scoring.reference import ReferenceScorer

        _scorer = ReferenceScorer(model, engine)
    else:
        from qtune_service.scoring.vllm.engine import VllmScorer

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

    from qtune_service.scoring.vllm.plugin import causal_architectures

    load_general_plugins()
    return sorted(_VLLM_MODELS), causal_architectures(), sorted(ModelRegistry.get_supported_archs())


def is_warm() -> bool:
    """Return whether this process, which holds the engine, called vector math before its model was built."""
    from qtune_service.scoring.process_environment import warm_up_vector_math

    return warm_up_vector_math.cache_info().currsize == 1


def process_id() -> int:
    """Return the process id of the worker."""
    return os.getpid()


def heads() -> list[str]:
    """Return how the scoring heads of all ranks reduce their rows, after at least one call."""
    descriptions: list[str] = _scorer._llm.collective_rpc("qtune_head")
    return descriptions


def watch_heads() -> dict[str, str]:
    """Return the result of watching the loaded model's head, as it is and changed as models change it."""
    verdicts: dict[str, str] = _scorer._llm.apply_model(_watch_all)[0]
    return verdicts


def _watch_all(model: Any) -> dict[str, str]:
    """Watch the model in vLLM's process. The model is left as it was."""
    import torch
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    from qtune_service.scoring.vllm.model_logits import watch

    own, processor, lm_head = model.compute_logits, model.logits_processor, model.lm_head

    def verdict(compute_logits: Any = own) -> str:
        model.compute_logits = compute_logits
        try:
            plain = watch(model, torch.randn(4, 128))
        finally:
            del model.compute_logits
        matrix = plain if isinstance(plain, str) else plain.matrix(torch.float32)
        return matrix if isinstance(matrix, str) else f"{tuple(matrix.weight.shape)}"

    class Wrapped(LogitsProcessor):  # type: ignore[misc]  # as LoRA's
        pass

    found = {"as it is": verdict(), "scaled before": verdict(lambda h: own(h * 2))}
    found["scaled after, in place"] = verdict(lambda h: own(h).mul_(2))
    found["masked after"] = verdict(lambda h: own(h)[:, :100])
    found["no processor"] = verdict(lambda h: h @ lm_head.weight.T)
    for name, value in (("soft_cap", 30.0), ("scale", 0.5)):
        before = getattr(processor, name)
        setattr(processor, name, value)
        found[name] = verdict()
        setattr(processor, name, before)
    processor.__class__ = Wrapped
    found["another class"] = verdict()
    processor.__class__ = LogitsProcessor
    method = lm_head.quant_method
    lm_head.quant_method = type("Fp8Method", (), {"apply": staticmethod(method.apply)})()
    found["quantised"] = verdict()
    lm_head.quant_method = method
    return {**found, "as it was found": verdict()}


def score_with_quantized_head(samples: Sequence[Sample]) -> tuple[str, list[TokenScores], str]:
    """Score with a head that is not one of vLLM's plain ones, in another type than the model's, as on a GPU.

    Return the error of vLLM as it is, the scores, and the head. The engine is left with this head.
    """
    error, scores = "", []
    _scorer._llm.apply_model(_quantize_head)
    try:
        _scorer.score(samples)
    except ValueError as refused:
        error = str(refused)
    _scorer._llm.apply_model(_use_quantized_heads)
    scores = _scorer.score(samples)
    return error, scores, heads()[0]


def _quantize_head(model: Any) -> None:
    import torch

    inner = model.lm_head.quant_method
    model.lm_head.quant_method = type("PackedMethod", (), {"apply": staticmethod(inner.apply)})()
    model.logits_processor.head_dtype = torch.float64


def _use_quantized_heads(model: Any) -> None:
    from qtune_service.scoring.vllm.pooling_model import use_quantized_heads

    use_quantized_heads(model)


def engine_settings() -> dict[str, Any]:
    """Return settings of the running engine, as vLLM has them."""
    config = _scorer._llm.llm_engine.vllm_config
    return {
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "kv_cache_dtype": config.cache_config.cache_dtype,
        "block_size": config.cache_config.block_size,
        "max_model_len": config.model_config.max_model_len,
    }
