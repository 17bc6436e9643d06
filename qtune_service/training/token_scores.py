"""Compute the token scores of rows under the model in training: a forward pass without gradients and large logits.

Rows are scored in groups of similar length, each cut after its last trained token, so that there is little padding. No
attention mask is passed, since a causal model's output at a token does not depend on later tokens. Logits exist for
trained tokens only, in blocks of rows, and use the statistics of jobs (scoring/statistics.py). For this, the head of
the model is observed inside the model's own forward pass: its input is the hidden states, and its output is replaced by
an empty one. So wrappers that gather sharded weights (FSDP) or cast (autocast) work as usual. A test on a few tokens
shows whether the logits are exactly the head's output. A model that changes them after its head (a soft cap, a scale),
or has no head, is scored from its own logits, a few rows at a time.

The model is in evaluation mode during scoring (no dropout). The training modes of all modules and the random state are
restored, also after an error.

With tensor parallelism each rank holds a part of the vocabulary. Four numbers per token describe a part
(scoring/statistics.py), so ranks exchange 16 bytes per token instead of its logits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from qtune_service.errors import DataError
from qtune_service.scoring.statistics import Statistics, eager_partials, merge, nll_and_entropy
from qtune_service.training.batch_layout import Rows, run_indices


def vocab_parallel_scores(
    logits: torch.Tensor, labels: torch.Tensor, first: int, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Return the scores (n, 2) in nats of logits (n, V / ranks), which are the columns from `first` on.

    labels (n,) are tokens of the whole vocabulary. Every rank of the group receives all scores.
    """
    return nll_and_entropy(_merged(own_partials(logits, labels, first), group))


def own_partials(
    logits: torch.Tensor, labels: torch.Tensor, first: int, statistics: Statistics = eager_partials
) -> torch.Tensor:
    """Return the partials (n, 4) of a rank's columns. A label of another rank has logit -inf."""
    own = labels - first
    is_here = (own >= 0) & (own < logits.shape[-1])
    partials = statistics(logits, own.clamp(0, logits.shape[-1] - 1))
    partials[:, 3] = partials[:, 3].masked_fill(~is_here, -math.inf)
    return partials


def partials_of_logits(logits: torch.Tensor, labels: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """Return the partials (n, 4) of logits (n, V), which may be a DTensor sharded by columns."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(logits, DTensor):
        return statistics(logits, labels)
    mesh, (placement,) = logits.device_mesh, logits.placements
    if not (isinstance(placement, Shard) and placement.dim == logits.ndim - 1):
        return statistics(logits.full_tensor(), labels)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, start = compute_local_shape_and_global_offset(logits.shape, mesh, logits.placements)
    return _merged(own_partials(logits.to_local(), labels, start[-1], statistics), mesh.get_group())


def _merged(partials: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    parts = [torch.empty_like(partials) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, partials.contiguous(), group=group)
    return merge(torch.stack(parts))


LOGITS_BYTES = 1 << 28
BATCH_TOKENS = 16384
PROBE_TOKENS = 8

Forward = Callable[[Any, torch.Tensor], torch.Tensor]
"""Function from a model and ids (B, T) to logits (B, T, V)."""


def call_for_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a transformers model or of a module that returns them: (B, T) -> (B, T, V)."""
    output = model(input_ids=ids, use_cache=False) if _unwrapped_config(model) is not None else model(ids)
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


class TokenScorer:
    """Score rows with the model's current weights."""

    def __init__(
        self,
        forward: Forward = call_for_logits,
        *,
        batch_tokens: int = BATCH_TOKENS,
        logits_bytes: int = LOGITS_BYTES,
        statistics: Statistics = eager_partials,
    ) -> None:
        self._forward, self._batch_tokens, self._logits_bytes = forward, batch_tokens, logits_bytes
        self._statistics = statistics
        self._heads: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()

    def score(self, model: Any, rows: Rows, device: torch.device) -> NDArray[np.float32]:
        """Return NLL and entropy of all trained tokens of the rows in order: (M, 2) float32, nats.

        With a sharded model (FSDP) every rank must call it, with any number of rows.
        """
        model = _callable_module(model)
        lengths = _scored_lengths(rows)
        with torch.no_grad(), evaluation_mode(model, device):
            head = self._head_of(model, device)
            parts = [
                (group, self._score_group(model, head, rows, lengths, group, device))
                for group in self._groups(model, lengths, is_by_head=head is not None, device=device)
            ]
        return _in_order(rows, parts)

    # --- groups of rows

    def _groups(
        self, model: Any, lengths: NDArray[np.int64], *, is_by_head: bool, device: torch.device
    ) -> list[NDArray[np.int64]]:
        """Group rows by similar length, longest first. Ranks of a sharded model get the same number of groups."""
        budget = self._batch_tokens
        if not is_by_head:
            vocab = getattr(_unwrapped_config(model), "vocab_size", None) or 1 << 16
            budget = max(1, min(budget, self._logits_bytes // (4 * vocab)))
        groups, at = [], 0
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        while at < len(order):
            size = max(1, budget // int(lengths[order[at]]))
            groups.append(order[at : at + size])
            at += size
        if is_sharded(model):
            most = torch.tensor(len(groups), device=device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            groups += [np.empty(0, np.int64)] * (int(most) - len(groups))
        return groups

    def _score_group(
        self,
        model: Any,
        head: nn.Module | None,
        rows: Rows,
        lengths: NDArray[np.int64],
        group: NDArray[np.int64],
        device: torch.device,
    ) -> torch.Tensor:
        """Return the scores (n of the group's rows, 2) on the device."""
        ids, places, labels = _group_tensors(rows, lengths, group)
        ids_t, places_t, labels_t = (torch.from_numpy(array).to(device) for array in (ids, places, labels))
        if head is None:
            rows_of_logits = _checked(self._forward(model, ids_t).flatten(0, 1), ids_t)
            return nll_and_entropy(self._blocks(lambda block: block, rows_of_logits[places_t], labels_t))
        found: list[torch.Tensor] = []

        def see(project: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> None:
            found.append(self._blocks(project, _checked(hidden, ids_t)[places_t], labels_t))

        with observed(head, see):
            self._forward(model, ids_t)
        return nll_and_entropy(found[0])

    def _blocks(
        self, project: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the partials (n, 4) of inputs (n, H) projected to logits, one block at a time."""
        parts, at, size = [torch.empty(0, 4, device=inputs.device)], 0, 1
        while at < len(inputs):
            logits = project(inputs[at : at + size])
            parts.append(partials_of_logits(logits, labels[at : at + size], self._statistics))
            at += size
            size = max(1, self._logits_bytes // (4 * logits.shape[-1]))
        return torch.cat(parts)

    # --- the head

    def _head_of(self, model: Any, device: torch.device) -> nn.Module | None:
        """Return the module whose output is the model's logits, or None. Tested once per model."""
        if model not in self._heads:
            self._heads[model] = self._try_head(model, device)
        return self._heads[model]

    def _try_head(self, model: Any, device: torch.device) -> nn.Module | None:
        head = _output_embedding(model)
        if head is None:
            return None
        seen: list[torch.Tensor] = []
        handle = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            logits = self._forward(model, (torch.arange(PROBE_TOKENS, device=device) % _vocabulary(head))[None])
        finally:
            handle.remove()
        is_plain = len(seen) == 1 and seen[0].shape == logits.shape and torch.equal(seen[0].float(), logits.float())
        return head if is_plain else None


@contextlib.contextmanager
def observed(
    head: nn.Module, see: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], None]
) -> Iterator[None]:
    """Call `see` with the head's projection and its input rows (n, H), once, instead of running the head."""
    project = head.forward

    def look(hidden: torch.Tensor) -> torch.Tensor:
        see(project, hidden.flatten(0, -2))
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    own = head.__dict__.get("forward")
    head.forward = look
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Set evaluation mode; afterwards restore each module's mode and the random state."""
    training = [module for module in model.modules() if module.training]
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def is_sharded(model: nn.Module) -> bool:
    """Return whether ranks hold shards of the weights and must call the model together (FSDP)."""
    from torch.distributed.tensor import DTensor

    kinds = {type(module).__name__ for module in model.modules()}
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
        and ("FullyShardedDataParallel" in kinds or any(isinstance(p, DTensor) for p in model.parameters()))
    )


def _callable_module(model: Any) -> nn.Module:
    """Return the module to call, without DDP and without torch.compile, which would compile the observed head."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # noqa: SLF001 - torch.compile has no public name
        else:
            found: nn.Module = model
            return found


def _output_embedding(model: Any) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    found = find() if callable(find) else getattr(model, "lm_head", None)
    return found if isinstance(found, nn.Module) else None


def _vocabulary(head: nn.Module) -> int:
    """Return the vocabulary size of a head; 1 if unknown, which every model has."""
    weight = getattr(head, "weight", None)
    return 1 if weight is None or weight.ndim < 2 else int(weight.shape[0])


def _unwrapped_config(model: Any) -> Any:
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else None


def _checked(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return hidden states or logits (n, .) after checking that there is one row for each token (B, T)."""
    if len(rows) != ids.numel():
        raise DataError(
            f"the model returns {len(rows)} positions for {ids.numel()} tokens",
            "Models that prepend tokens to a row (prompt tuning) are not supported.",
        )
    return rows


# --- arrays


def _scored_lengths(rows: Rows) -> NDArray[np.int64]:
    """Return the tokens of each row to read, (S,), up to the one that predicts the last trained token; else 0."""
    positions = np.flatnonzero(rows.loss_mask)
    lengths = np.zeros(len(rows), np.int64)
    row_of = np.searchsorted(rows.offsets, positions, side="right") - 1
    lengths[row_of] = positions - rows.offsets[row_of]  # ascending: the last one remains
    return lengths


def _group_tensors(
    rows: Rows, lengths: NDArray[np.int64], group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return ids (B, T) padded on the right, flat positions that predict trained tokens (n,), and these tokens (n,)."""
    if not len(group):  # only other ranks have rows
        return np.zeros((1, 1), np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    read = lengths[group]
    width = int(read.max())
    ids = np.zeros((len(group), width), np.int64)
    ids[np.arange(width) < read[:, None]] = rows.input_ids[run_indices(rows.offsets[group], read)]
    chosen = rows.take(group)
    trained = np.flatnonzero(chosen.loss_mask)
    row_of = np.searchsorted(chosen.offsets, trained, side="right") - 1
    places = row_of * width + (trained - chosen.offsets[row_of]) - 1
    return ids, places, chosen.input_ids[trained]


def _in_order(rows: Rows, parts: list[tuple[NDArray[np.int64], torch.Tensor]]) -> NDArray[np.float32]:
    """Return the scores of all groups in row order. The device is synchronized once."""
    sizes = rows.num_trained
    starts = np.cumsum(sizes) - sizes
    scores = np.empty((int(sizes.sum()), 2), np.float32)
    filled = [(group, part) for group, part in parts if len(group)]
    if filled:
        flat = torch.cat([part for _, part in filled]).cpu().numpy()
        order = np.concatenate([group for group, _ in filled])
        scores[run_indices(starts[order], sizes[order])] = flat
    return scores
