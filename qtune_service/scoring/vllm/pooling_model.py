"""Run a causal LM of vLLM as a pooling model that returns (NLL, entropy) of the scored tokens.

vLLM passes the hidden states of all tokens of a step to the pooler. It selects the rows that predict scored tokens and
reduces each to two numbers, by the model's `compute_logits` on blocks of rows or by an equivalent method
(model_logits.py). So neither logits nor probabilities leave the device, and `logits_bytes` bounds the memory. Samples
longer than a step (chunked prefill) collect their rows in a buffer of the request. Rows that came from the prefix cache
keep the value UNSCORED. A computed NLL or entropy is never negative and may be NaN.

On a CPU, vLLM's RMSNorm uses single torch operations, each a pass over memory, although its CPU build has a fused
kernel. For 4,096 tokens of 896 numbers it takes 40 ms instead of 1.2 ms, 49 times in a step of a 0.5B model. The fused
kernel also computes in float32. It is registered by `CustomOp.register_oot`, vLLM's hook for external layers, and only
where a scoring model is built. A fused SiLU was slower (94 ms instead of 69 ms) and is not used.

Only vLLM's processes import this file; see plugin.py.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform
from vllm.v1.pool.metadata import PoolingMetadata

from qtune_service.scoring.logits import Choice, default_logits_bytes
from qtune_service.scoring.process_environment import warm_up_vector_math
from qtune_service.scoring.scorer import UNSCORED
from qtune_service.scoring.statistics import nll_and_entropy, statistics_for
from qtune_service.scoring.vllm import arguments
from qtune_service.scoring.vllm.model_logits import PLAIN_METHODS, HeadSettings, choose_vllm_head
from qtune_service.scoring.vllm.plugin import ARCHITECTURE_PREFIX

TASK = arguments.TASK
SPANS_KEY = "qtune_spans"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Scored rows of a request that this step computed."""

    rows: NDArray[np.int64]  # (k,) row indices in the step's hidden states
    labels: torch.Tensor  # (k,) predicted tokens
    first: int  # index of the first row among the request's n scored tokens
    num_scored: int  # n


class ScorePooler(Pooler):  # type: ignore[misc]  # vllm is not typed here
    """Reduce hidden states to (n, 2) float32 per request."""

    def __init__(self, model: Any, vocab_size: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self._model = weakref.ref(model)  # the model owns the pooler and must not become its submodule
        self._vocab_size, self._settings = vocab_size, settings
        self._choice: Choice | None = None

    @property
    def head(self) -> str:
        """Return the head and its reason; empty before the first step."""
        return self._choice.description if self._choice else ""

    def get_supported_tasks(self) -> AbstractSet[str]:
        """Return the only task."""
        return {TASK}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:  # noqa: ARG002 - vLLM's signature
        """Request the prompt's tokens, which are the labels."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor | None]:
        """Score this step's rows (T, H). A request yields (n, 2) float32 with its last chunk, None before.

        The scores of a step are copied to the CPU once, and requests of one step get their part of this copy. vLLM
        waits for the stream of the pooler before it reads outputs, and copies what is not on the CPU.
        """
        chunks = _chunks(pooling_metadata)
        rows = torch.from_numpy(np.concatenate([chunk.rows for chunk in chunks]))
        labels = torch.cat([chunk.labels for chunk in chunks])
        scores = self._score(hidden_states, rows, labels)  # (sum of k, 2)
        copied = scores.to("cpu", non_blocking=True)
        finished = pooling_metadata.get_pooling_cursor().get_finished_mask()
        outputs: list[torch.Tensor | None] = []
        offset = 0
        for chunk, state, is_last in zip(chunks, pooling_metadata.pooling_states, finished, strict=True):
            mine = slice(offset, offset + len(chunk.rows))
            offset += len(chunk.rows)
            if is_last and not state.hidden_states_cache and len(chunk.rows) == chunk.num_scored:
                outputs.append(copied[mine])
            else:
                outputs.append(_collect(state.hidden_states_cache, chunk, scores[mine], is_last=is_last))
        return outputs

    def _score(self, hidden_states: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device
        if len(rows) == 0:
            return torch.empty(0, 2, dtype=torch.float32, device=device)
        if self._choice is None:
            self._choice = self._choose(hidden_states)
        rows, labels = rows.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        return nll_and_entropy(self._choice.head(hidden_states.index_select(0, rows), labels))

    def _choose(self, hidden_states: torch.Tensor) -> Choice:
        settings = HeadSettings(
            vocab_size=self._vocab_size,
            logits_bytes=int(self._settings.get("logits_bytes") or default_logits_bytes(0)),
            statistics=statistics_for(hidden_states.device, str(self._settings.get("statistics", "auto"))),
            try_kernel=bool(self._settings.get("head_kernel", True)),
        )
        return choose_vllm_head(self._model(), hidden_states, settings)


def _chunks(metadata: PoolingMetadata) -> list[_Chunk]:
    cursor = metadata.get_pooling_cursor()
    ids = metadata.get_prompt_token_ids_cpu()
    scheduled = cursor.num_scheduled_tokens_cpu.tolist()
    ends = cursor.seq_lens_cpu.tolist()  # computed tokens of each request after this step
    chunks = []
    offset = 0
    for i, params in enumerate(metadata.pooling_params):
        spans = (params.extra_kwargs or {}).get(SPANS_KEY)
        if spans is None:
            chunks.append(_warm_up_chunk(offset, scheduled[i]))
        else:
            chunks.append(_chunk(scored_positions(spans), ids[i], offset, ends[i] - scheduled[i], ends[i]))
        offset += scheduled[i]
    return chunks


def _chunk(positions: NDArray[np.int64], ids: torch.Tensor, offset: int, begin: int, end: int) -> _Chunk:
    """Return the rows of a chunk of positions begin..end-1, with hidden states from row `offset` of the step."""
    first, last = np.searchsorted(positions, (begin + 1, end + 1))  # row t - 1 predicts token t
    mine = positions[first:last]
    labels = ids[torch.from_numpy(mine)].long()
    return _Chunk(rows=mine - 1 - begin + offset, labels=labels, first=int(first), num_scored=len(positions))


def _warm_up_chunk(offset: int, num_tokens: int) -> _Chunk:
    """Score every row of a request without spans, as memory profiling sends it, so that it measures the peak."""
    rows = np.arange(offset, offset + num_tokens, dtype=np.int64)
    return _Chunk(rows=rows, labels=torch.zeros(num_tokens, dtype=torch.int64), first=0, num_scored=num_tokens)


def _collect(cache: list[torch.Tensor], chunk: _Chunk, part: torch.Tensor, *, is_last: bool) -> torch.Tensor | None:
    """Store a chunk's scores (k, 2). Return the request's (n, 2) when it is complete."""
    if not cache:
        cache.append(torch.full((chunk.num_scored, 2), UNSCORED, dtype=torch.float32, device=part.device))
    cache[0][chunk.first : chunk.first + len(part)] = part
    return cache.pop() if is_last else None


class WorkerCalls:
    """Methods of vLLM's workers for `collective_rpc`. vLLM adds this as a base class."""

    get_model: Callable[[], Any]

    def qtune_head(self) -> str:
        """Return the head of this rank; empty before the first step."""
        return str(self.get_model().pooler.head)

    def qtune_zero_cache(self) -> None:
        """Zero the blocks of the attention cache."""
        for module in self.get_model().modules():
            cache = getattr(module, "kv_cache", None)
            for tensor in cache if isinstance(cache, (list, tuple)) else [cache]:
                if tensor is not None:
                    tensor.zero_()


def scored_positions(spans: list[int]) -> NDArray[np.int64]:
    """Expand [start, end, start, end, ...] to ascending positions (n,)."""
    if not spans:
        return np.empty(0, np.int64)
    bounds = np.asarray(spans, np.int64).reshape(-1, 2)
    lengths = bounds[:, 1] - bounds[:, 0]
    shift = bounds[:, 0] - np.concatenate(([0], np.cumsum(lengths)[:-1]))
    positions: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(shift, lengths)
    return positions


def adapt(base: type[torch.nn.Module], name: str) -> type[torch.nn.Module]:
    """Build the scoring variant of a vLLM causal LM class."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, vllm_config=vllm_config, prefix=prefix, **kwargs)
        vocab_size = vllm_config.model_config.get_vocab_size()
        use_quantized_heads(self)
        self.pooler = ScorePooler(self, vocab_size, vllm_config.additional_config.get(arguments.CONFIG_KEY, {}))

    body = {
        "__init__": __init__,
        "__module__": __name__,
        "__doc__": f"{base.__name__} as a scorer.",
        "is_pooling_model": True,
        "default_tok_pooling_type": "ALL",  # keeps chunked prefill and prefix caching of decoders
    }
    return types.new_class(name, (base,), exec_body=lambda namespace: namespace.update(body))


def use_quantized_heads(model: torch.nn.Module) -> None:
    """Let a model with a quantized head compute its logits in the model's type.

    vLLM computes the logits of pooling models in float32 and refuses that for a quantized weight.
    """
    heads = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    if all(type(head.quant_method) in PLAIN_METHODS for head in heads):
        return
    for module in model.modules():
        if isinstance(module, LogitsProcessor):
            module.head_dtype = None


def __getattr__(name: str) -> type[torch.nn.Module]:
    """Resolve "QTuneScorer<architecture>@<vLLM version>" to a class (PEP 562)."""
    if not name.startswith(ARCHITECTURE_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.model_executor.models.registry import ModelRegistry

    warm_up_vector_math()
    use_fused_layers()
    architecture = name.removeprefix(ARCHITECTURE_PREFIX).partition("@")[0]
    adapted = adapt(ModelRegistry.models[architecture].load_model_cls(), name.partition("@")[0])
    setattr(sys.modules[__name__], name, adapted)
    return adapted


_OPS = torch.ops._C  # noqa: SLF001 - vLLM's kernels
KERNELS = ("rms_norm", "fused_add_rms_norm")


class FusedRMSNorm(RMSNorm):  # type: ignore[misc]  # vllm is not typed here
    """RMSNorm by the fused kernels, if they apply."""

    def forward_native(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalize x (..., H), or x + residual, which is returned as well."""
        is_plain = self.has_weight and self.variance_size_override is None and self.weight.dtype == x.dtype
        if not is_plain or not x.is_contiguous() or (residual is not None and not residual.is_contiguous()):
            plain: torch.Tensor | tuple[torch.Tensor, torch.Tensor] = super().forward_native(x, residual)
            return plain
        if residual is None:
            out = torch.empty_like(x)
            _OPS.rms_norm(out, x, self.weight.data, self.variance_epsilon)
            return out
        _OPS.fused_add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
        return x, residual

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalize on a CPU; see `forward_native`."""
        return self.forward_native(x, residual)


def use_fused_layers() -> None:
    """Use the fused layers in models that this process builds from now on. Only on a CPU that has them."""
    has_kernels = current_platform.is_cpu() and all(hasattr(_OPS, name) for name in KERNELS)
    if has_kernels and "RMSNorm" not in op_registry_oot:
        CustomOp.register_oot(name="RMSNorm")(FusedRMSNorm)
