"""Pack sequences into one row without padding, each attending to itself only.

In a decoder everything except attention operates on single tokens. So a batch can be one row of T tokens, if attention
and positions respect the sequence boundaries. Positions are passed to the model. The attention function is ours,
registered with transformers by name: torch's variable-length flash attention on a GPU, else one causal call a sequence.

A model is packed only if a check shows that packing is exact:
- transformers can replace the model's attention;
- every layer is plainly causal: our mask function rejects windows and chunks, and our attention function rejects
  unknown arguments such as caps and sinks;
- packed sequences give the same logits as alone, which detects positions that are not taken from the input;
- a sequence of NaN leaves its neighbours finite. This needs no tolerance, because NaN passes through everything that
  mixes tokens (Mamba's state, other attention) with any weight, even 0.
Other models are padded, and the reason is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

NAME = "qtune_packed"
_PROBE_LENGTHS = (9, 1, 17, 5)
_POISONED = 2  # index of the NaN sequence of the probe
_BOUNDARY_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # names in transformers
_HARMLESS = frozenset(("position_ids", "position_embeddings", "cache_position", "use_cache", *_BOUNDARY_ARGUMENTS))


class UnpackableError(ValueError):
    """The model's attention is more than causal attention within each sequence."""


def pack(sequences: Sequence[torch.Tensor], device: torch.device) -> dict[str, Any]:
    """Return the forward arguments of a packed model for int64 sequences (T_i,) on the CPU."""
    lengths = [len(sequence) for sequence in sequences]
    ends = torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32).to(device, non_blocking=True)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": torch.cat(list(sequences))[None].to(device, non_blocking=True),
        "position_ids": positions[None].to(device, non_blocking=True),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }


def packed_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group indices, longest first, so that the lengths of a group sum to at most the budget.

    A sequence longer than the budget forms its own group. Length 0 is omitted.
    """
    batch: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        if batch and total + lengths[i] > budget:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += lengths[i]
    if batch:
        yield batch


def enable_packing(model: Any, vocab_size: int, tolerance: float) -> str:
    """Replace the model's attention for packing if that is exact; else keep it and return the reason.

    tolerance: allowed difference between packed and alone, as a share of the largest logit.
    """
    register()
    before = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(vocab_size, (length,), generator=generator) for length in _PROBE_LENGTHS]
    alone = [_logits(model, {"input_ids": s[None].to(model.device), "use_cache": False}) for s in sequences]
    try:
        model.set_attn_implementation(NAME)
        reason = _difference(model, pack(sequences, model.device), torch.cat(alone), tolerance)
    except (TypeError, ValueError, RuntimeError, ImportError, AttributeError, LookupError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if reason:
        model.set_attn_implementation(before)
    return reason


def _difference(model: Any, packed: dict[str, Any], alone: torch.Tensor, tolerance: float) -> str:
    """Return the problem of packed logits against `alone` (T, V), the logits of single sequences; empty if none."""
    drift = float((_logits(model, packed) - alone).abs().max() / alone.abs().max())
    if not drift <= tolerance:
        return f"sequences in a pack differ by {drift:.1e} of the largest logit"
    begin, end = sum(_PROBE_LENGTHS[:_POISONED]), sum(_PROBE_LENGTHS[: _POISONED + 1])
    embedded = model.get_input_embeddings()(packed.pop("input_ids"))  # (1, T, H)
    embedded[:, begin:end] = torch.nan
    logits = _logits(model, {**packed, "inputs_embeds": embedded})
    others = torch.cat((logits[:begin], logits[end:]))
    if not (torch.isfinite(others).all() and logits[begin:end].isnan().all()):
        return "packed sequences influence each other"
    return ""


def _logits(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """Return logits (T, V) by the head path."""
    logits: torch.Tensor = model.get_output_embeddings()(model.base_model(**arguments).last_hidden_state)[0].float()
    return logits


def register() -> None:
    """Register the attention and its mask with transformers. Idempotent."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)


def packed_mask(*, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> None:
    """Replace the mask of a plainly causal layer by none. Raises UnpackableError for other layers."""
    if local_size is not None:
        raise UnpackableError(f"a layer attends to the last {local_size} tokens only")
    if use_vmap:
        raise UnpackableError("a layer has its own mask")


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,  # noqa: ARG001 - transformers' signature; models are in evaluation mode
    scaling: float | None = None,
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention within each sequence of a packed row: query (1, heads, T, D) -> (1, T, heads, D)."""
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    unknown = sorted(given - _HARMLESS)
    if attention_mask is not None or sliding_window is not None or unknown or is_causal is False:
        raise UnpackableError(f"attention with {', '.join(unknown) or 'a mask or window'}")
    ends, longest = kwargs.get("cu_seq_lens_q"), kwargs.get("max_length_q")
    if ends is None or longest is None or len(query) != 1:
        raise UnpackableError("the sequence boundaries did not reach the attention")
    if query.is_cuda:
        return _by_kernel(query, key, value, ends, longest, scaling), None
    return _by_sequence(module, query, key, value, ends.tolist(), scaling), None


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D) each
    gqa = q.shape[1] != k.shape[1]
    causal = (-1, 0)
    out: torch.Tensor = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=scaling, window_size=causal, enable_gqa=gqa
    )
    return out[None]


def _by_sequence(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: Sequence[int],
    scaling: float | None,
) -> torch.Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    parts = []
    for begin, end in pairwise(ends):
        q, k, v = (x[:, :, begin:end] for x in (query, key, value))
        parts.append(sdpa_attention_forward(module, q, k, v, None, scaling=scaling, is_causal=True)[0])
    return torch.cat(parts, 1)
