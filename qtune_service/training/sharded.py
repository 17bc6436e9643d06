"""NLL and entropy where each rank holds a part of the vocabulary (tensor parallelism), without gathering logits.

Four numbers a token say all that a part of the vocabulary adds (scoring/statistics.py), so ranks exchange 16 bytes a
token in place of its logits.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from qtune_service.scoring.statistics import Statistics, eager_partials, merge, nll_and_entropy


def vocab_parallel_scores(
    logits: torch.Tensor, labels: torch.Tensor, first: int, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Scores (n, 2) in nats of logits (n, V / ranks), of which this rank holds the columns from `first` on.

    labels (n,) are tokens of the whole vocabulary. Every rank of the group gets all scores.
    """
    return nll_and_entropy(_merged(own_partials(logits, labels, first), group))


def own_partials(
    logits: torch.Tensor, labels: torch.Tensor, first: int, statistics: Statistics = eager_partials
) -> torch.Tensor:
    """Partials (n, 4) of a rank's own columns. A label of another rank has logit -inf here."""
    own = labels - first
    is_here = (own >= 0) & (own < logits.shape[-1])
    partials = statistics(logits, own.clamp(0, logits.shape[-1] - 1))
    partials[:, 3] = partials[:, 3].masked_fill(~is_here, -math.inf)
    return partials


def partials_of_logits(logits: torch.Tensor, labels: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """Partials (n, 4) of logits (n, V), also where they are a DTensor that ranks hold by columns."""
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
