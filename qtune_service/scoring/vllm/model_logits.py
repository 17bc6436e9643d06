"""Find out how a vLLM model computes its logits, by observing one call of `compute_logits`.

The logits of a model may be more than its LM head: some models scale the hidden states before it, or mask logits after
it. So nothing is derived from the model's class. One call on a few rows is observed. The model is plain only if that
call made one call of vLLM's LogitsProcessor, on the same tensor that `compute_logits` received, and returned the same
result. Then

    compute_logits(h) = soft cap and scale of (h @ weight.T + bias), of all ranks, cut to the vocabulary

and each rank can reduce its own columns (ShardedHead), cut to the vocabulary. Soft cap and scale are kept, since the
processor applies them to a rank's logits too. The kernel is used only without both and without quantization. LoRA is
recognized by its own classes.

All ranks must use the same method, and only the first sees gathered logits, so they agree on it in one exchange.

Reviewed against vLLM 0.32: model_executor/layers/logits_processor.py and vocab_parallel_embedding.py.
Only vLLM's processes import this file; see plugin.py.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import vllm.envs
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from qtune_service.scoring.logits import KERNEL_IS_OFF, BlockwiseHead, Choice, Matrix, Project, ShardedHead, choose_head
from qtune_service.scoring.statistics import Statistics

WATCHED_ROWS = 4
_SIGNATURE = inspect.signature(LogitsProcessor.forward)
_HEADS = (ParallelLMHead, VocabParallelEmbedding)  # the second for tied embeddings
PLAIN_METHODS = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A model with logits from one call of vLLM's logits processor."""

    processor: Any  # LogitsProcessor
    lm_head: Any  # VocabParallelEmbedding
    bias: torch.Tensor | None  # (columns of this rank,)

    @property
    def first(self) -> int:
        """Return the first column of this rank in vLLM's gathering order."""
        return int(self.lm_head.tp_rank * self.lm_head.num_embeddings_per_partition)

    @property
    def width(self) -> int:
        """Return the number of token columns of this rank. vLLM pads the vocabulary and cuts it after gathering."""
        held = int(self.lm_head.num_embeddings_per_partition)
        return min(max(int(self.processor.org_vocab_size) - self.first, 0), held)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, width) of this rank, with soft cap and scale."""
        logits: torch.Tensor = self.processor(self.lm_head, hidden, self.bias, skip_gather=True)
        return logits[:, : self.width]

    def matrix(self, dtype: torch.dtype) -> Matrix | str:
        """Return the columns of this rank as a matrix for a hidden dtype, or the reason why that is not possible."""
        method = type(self.lm_head.quant_method)
        weight = getattr(self.lm_head, "weight", torch.empty(0, dtype=torch.int8))  # quantized heads may have none
        problems = {
            "the model caps its logits": self.processor.soft_cap is not None,
            "the model scales its logits": self.processor.scale != 1.0,
            f"the head is quantized ({method.__name__})": method not in PLAIN_METHODS,
            f"hidden states are {dtype}, and the head's weight is {weight.dtype}": weight.dtype != dtype,
            "this rank holds no columns": self.width == 0,
            # The kernel splits the vocabulary by the number of rows, which changes its sums.
            "VLLM_BATCH_INVARIANT is set": bool(vllm.envs.VLLM_BATCH_INVARIANT),
        }
        found = [problem for problem, holds in problems.items() if holds]
        bias = None if self.bias is None else self.bias[: self.width]
        return found[0] if found else Matrix(weight[: self.width], bias)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """Settings that influence the choice of a head."""

    vocab_size: int
    logits_bytes: int
    statistics: Statistics
    try_kernel: bool

    def blockwise(self, project: Project, num_columns: int) -> BlockwiseHead:
        """Return a head that processes as many rows at a time as fit into `logits_bytes` in float32."""
        return BlockwiseHead(project, max(1, self.logits_bytes // (4 * max(1, num_columns))), self.statistics)


def choose_vllm_head(model: Any, like: torch.Tensor, settings: HeadSettings) -> Choice:
    """Choose the head of this rank for hidden rows (n, H). All ranks must call it at the same step."""
    ranks = get_tensor_model_parallel_world_size()
    whole = settings.blockwise(model.compute_logits, settings.vocab_size)
    if ranks == 1 and not like.is_cuda:
        return choose_head(whole, f"the kernel needs a GPU, and the model is on {like.device.type}")
    plain = watch(model, torch.randn(WATCHED_ROWS, like.shape[1], device=like.device).to(like.dtype))
    if not _all_ranks(not isinstance(plain, str), like.device) or isinstance(plain, str):
        reason = plain if isinstance(plain, str) else "the model's logits are not plain on another rank"
        return choose_head(whole, f"{'logits of all ranks gathered, ' if ranks > 1 else ''}{reason}")
    matrix = plain.matrix(like.dtype) if settings.try_kernel else KERNEL_IS_OFF
    if ranks == 1:
        return choose_head(whole, matrix)
    own = choose_head(settings.blockwise(plain.project, plain.width), matrix)
    head = ShardedHead(own.head, plain.first, plain.width, all_gather_rows)
    return Choice(head, f"partial sums over {ranks} shards of the vocabulary, each {own.description}")


def watch(model: Any, hidden: torch.Tensor) -> PlainHead | str:
    """Observe `compute_logits` on hidden (n, H); return a plain head, or a reason. All ranks must call it."""
    calls: list[tuple[Any, inspect.BoundArguments, torch.Tensor | None, torch.Tensor | None]] = []

    def note(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: torch.Tensor | None) -> None:
        bound = _SIGNATURE.bind(module, *arguments, **keywords)
        calls.append((module, bound, output, None if output is None else output.clone()))

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules() if type(m) is LogitsProcessor]
    try:
        logits = model.compute_logits(hidden)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != 1:
        return f"the model calls vLLM's logits processor {len(calls)} times"
    ((processor, bound, output, copy),) = calls
    bound.apply_defaults()
    given = bound.arguments
    if given["hidden_states"] is not hidden or processor.logits_as_input:
        return "the model changes the hidden states before its head"
    if logits is not output or not (copy is None or torch.equal(copy, logits)):
        return "the model changes the logits after its head"
    return _plain_head(processor, given)


def _plain_head(processor: Any, given: dict[str, Any]) -> PlainHead | str:
    lm_head = given["lm_head"]
    if type(lm_head) not in _HEADS or given.get("skip_gather", True):
        return f"the head is a {type(lm_head).__name__}, not one of vLLM's own"
    if lm_head.tp_size != get_tensor_model_parallel_world_size():
        return f"the head has {lm_head.tp_size} shards, not one per rank"
    return PlainHead(processor, lm_head, given["embedding_bias"])


def _all_ranks(is_plain: bool, device: torch.device) -> bool:
    flag = torch.tensor([[float(is_plain)]], device=device)
    return bool(all_gather_rows(flag).min())


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Gather rows (n, c) of all k ranks in rank order: (k n, c)."""
    gathered: torch.Tensor = tensor_model_parallel_all_gather(rows, dim=0)
    return gathered
