"""Simulate a device that takes a fixed time for each token, beside the real Python work of scoring.

A call of the device occupies it for tokens / TOKENS_PER_S and uses no core, as a GPU does. Two engines run on it:

    benchmarks.scale.device:plain   the pipeline's own work alone: an engine that sleeps for each batch of its prompts
    benchmarks.scale.device:vllm    the vLLM engine of the package with vLLM's own scheduler, block hashes and outputs.
                                    Only vLLM's executor, which would run the model, is replaced

Scores are made of the token ids, so they are the same every time. When the engine ends a call it appends a line to the
file that QTUNE_DEVICE_LOG names: when the device was first and last occupied, and for how long in all.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import (
    EngineInfo,
    InterruptedScoring,
    Prompt,
    Scores,
    Watch,
    check_samples,
    distinct_prompts,
    never,
    scores_of,
)

TOKENS_PER_S = float(os.environ.get("QTUNE_DEVICE_TOKENS_PER_S", "100000"))
STEP_TOKENS = 16_384
KV_BLOCKS = 20_000
MULTIPLIERS = (np.uint32(2654435761), np.uint32(2246822519))


class Device:
    """The clock of the device."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.begun_s = self.ended_s = 0.0

    def run(self, num_tokens: int, begun_s: float) -> None:
        """Occupy the device from `begun_s` on, and sleep until it is done."""
        self.begun_s = self.begun_s or begun_s
        seconds = num_tokens / TOKENS_PER_S
        self.busy_s += seconds
        time.sleep(max(0.0, begun_s + seconds - time.time()))
        self.ended_s = begun_s + seconds

    def log(self) -> None:
        """Append the times of the calls since the last log."""
        if "QTUNE_DEVICE_LOG" not in os.environ:
            return
        line = json.dumps({"begun_s": self.begun_s, "ended_s": self.ended_s, "busy_s": self.busy_s})
        with Path(os.environ["QTUNE_DEVICE_LOG"]).open("a") as file:
            file.write(line + "\n")
        self.busy_s = self.begun_s = self.ended_s = 0.0


def hashed(ids: NDArray[np.int32], positions: NDArray[np.int64]) -> Scores:
    """Return NLL and entropy from 0 to 8 nats, (n, 2), made of a token and the one before it."""
    pairs = ids[positions].astype(np.uint32) + ids[positions - 1].astype(np.uint32) * np.uint32(31)
    spread = np.stack([(pairs * multiplier) >> np.uint32(8) for multiplier in MULTIPLIERS], 1)
    return spread.astype(np.float32) * np.float32(8 / (1 << 24))


DEVICE = Device()


class PlainScorer:
    """An engine built as the package's own ones are. Versions without the steps of a call use `score`."""

    def __init__(self, model: ModelSpec) -> None:
        limit = model.max_model_len or 0
        self.info = EngineInfo("plain", "1", "none", "float32", "none", limit, 1 << 30, "the benchmark requested it")

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score in one step."""
        check_samples(samples, self.info)
        prompts, index = distinct_prompts(samples)
        scores = self._run(prompts, watch)
        return [scores_of(sample, prompts[i], scores[i]) for sample, i in zip(samples, index, strict=True)]

    def prepare(self, samples: Sequence[Sample]) -> Any:
        """Sort samples."""
        from qtune_service.scoring.scorer import PreparedSamples

        return PreparedSamples.of(samples, self.info)

    def run(self, prepared: Any, watch: Watch = never) -> list[Scores]:
        """Sleep for each batch."""
        return self._run(prepared.prompts, watch)

    def finish(self, prepared: Any, result: list[Scores]) -> Any:
        """Select the scores of the samples."""
        return prepared.select(np.concatenate(result))

    def _run(self, prompts: Sequence[Prompt], watch: Watch) -> list[Scores]:
        scores: list[Scores] = []
        tokens = 0
        for batch in batches(prompts):
            begun_s = time.time()
            ids = np.concatenate([prompt.input_ids for prompt in batch])
            starts = np.cumsum([0, *(len(prompt.input_ids) for prompt in batch[:-1])])
            rows = np.concatenate([p.positions + start for p, start in zip(batch, starts.tolist(), strict=True)])
            scores += np.split(hashed(ids, rows), np.cumsum([len(prompt.positions) for prompt in batch])[:-1])
            tokens += len(ids)
            DEVICE.run(len(ids), begun_s)
            if watch(tokens):
                raise InterruptedScoring({})
        DEVICE.log()
        return scores

    def close(self) -> None:
        """Do nothing: the scorer holds nothing."""


def batches(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Yield prompts in groups of at most STEP_TOKENS tokens."""
    batch: list[Prompt] = []
    tokens = 0
    for prompt in prompts:
        if batch and tokens + len(prompt.input_ids) > STEP_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(prompt)
        tokens += len(prompt.input_ids)
    if batch:
        yield batch


def plain(model: ModelSpec, _engine: EngineSpec) -> Any:
    """Build the engine without vLLM."""
    _as_own_engine()
    return PlainScorer(model)


def vllm(model: ModelSpec, engine: EngineSpec) -> Any:
    """Build the package's vLLM engine on a simulated device."""
    import vllm as package
    from vllm.v1.executor.abstract import Executor

    from qtune_service.scoring.vllm.engine import VllmScorer

    class Simulated(_Executor, Executor):  # type: ignore[misc]  # vllm is not typed here
        """vLLM's executor."""

    _as_own_engine()
    real = package.LLM
    package.LLM = functools.partial(real, distributed_executor_backend=Simulated)
    try:
        scorer: Any = VllmScorer(model, engine.model_copy(update={"max_num_batched_tokens": STEP_TOKENS}))
    finally:
        package.LLM = real
    name = "run" if hasattr(scorer, "run") else "score"
    call = getattr(scorer, name)

    def logged(*arguments: Any) -> Any:
        result = call(*arguments)
        DEVICE.log()
        return result

    setattr(scorer, name, logged)
    return scorer


def _as_own_engine() -> None:
    """Leave out the checks of a user's engine, which the package's own engines do not have."""
    from qtune_service.scoring import choose_engine

    vars(choose_engine)["CustomScorer"] = lambda _name, inner: inner


class _Executor:
    """Answers vLLM's calls of its workers, and sleeps where they would run the model."""

    def _init_executor(self) -> None:
        self._requests: dict[str, tuple[list[int], list[int], int]] = {}
        self.is_failed = False

    def check_health(self) -> None:
        """Do nothing: a simulated device is healthy."""

    def shutdown(self) -> None:
        """Do nothing: no worker is held."""

    def compile_or_warm_up_model(self) -> None:
        """Do nothing: there is no model."""

    def collective_rpc(self, method: Any, _timeout: Any = None, args: Any = (), *_: Any, **more: Any) -> Any:
        """Answer one call."""
        args = args or more.get("args") or ()
        answer = getattr(self, f"_{method}")(*args)
        if more.get("non_block"):
            future: Future[Any] = Future()
            future.set_result([answer])
            return future
        return [answer]

    def execute_model(self, scheduled: Any, non_block: bool = False) -> Any:
        """Run one step."""
        output = self._step(scheduled)
        if not non_block:
            return output
        future: Future[Any] = Future()
        future.set_result(output)
        return future

    def _step(self, scheduled: Any) -> Any:
        import torch
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

        from qtune_service.scoring.scorer import UNSCORED
        from qtune_service.scoring.vllm.pooling_model import SPANS_KEY, scored_positions

        begun_s = time.time()
        for new in scheduled.scheduled_new_reqs:
            spans = new.pooling_params.extra_kwargs[SPANS_KEY]
            self._requests[new.req_id] = new.prompt_token_ids, spans, new.num_computed_tokens
        if not scheduled.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        done: list[tuple[int, list[int], list[int], int]] = []
        outputs: list[Any] = [None] * len(scheduled.num_scheduled_tokens)
        computed = {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
        again = scheduled.scheduled_cached_reqs
        computed |= zip(again.req_ids, again.num_computed_tokens, strict=True)
        for i, (name, count) in enumerate(scheduled.num_scheduled_tokens.items()):
            ids, spans, cached = self._requests[name]
            if computed[name] + count >= len(ids):
                done.append((i, ids, spans, cached))
                del self._requests[name]
        if done:
            sizes = [len(ids) for _, ids, _, _ in done]
            starts = np.cumsum([0, *sizes[:-1]])
            at = [scored_positions(spans) for _, _, spans, _ in done]
            values = hashed(
                np.fromiter((token for _, ids, _, _ in done for token in ids), np.int32, sum(sizes)),
                np.concatenate([positions + start for positions, start in zip(at, starts, strict=True)]),
            )
            ends = np.cumsum([len(positions) for positions in at])
            for (i, _, _, cached), positions, end in zip(done, at, ends.tolist(), strict=True):
                mine = values[end - len(positions) : end]
                mine[positions <= cached] = UNSCORED if cached else mine[positions <= cached]
                outputs[i] = torch.from_numpy(mine)
        DEVICE.run(scheduled.total_num_scheduled_tokens, begun_s)
        names = list(scheduled.num_scheduled_tokens)
        places = {name: i for i, name in enumerate(names)}
        return ModelRunnerOutput(req_ids=names, req_id_to_index=places, pooler_output=outputs)

    def _get_kv_cache_spec(self) -> dict[str, Any]:
        import torch
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        size = self.vllm_config.cache_config.block_size
        return {"layer": FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=8, dtype=torch.float16)}

    def _determine_available_memory(self) -> int:
        return 512 * KV_BLOCKS

    def _get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def _qtune_head(self) -> str:
        return "simulated"

    def _get_supported_tasks(self) -> tuple[str, ...]:
        from qtune_service.scoring.vllm.pooling_model import TASK

        return (TASK,)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None
