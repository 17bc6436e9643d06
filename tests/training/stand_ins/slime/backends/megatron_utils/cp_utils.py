"""Context parallelism where rank r of two holds every second value, from the r-th on."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import mpu


def all_gather_with_cp(tensor: torch.Tensor, total_length: int, response_length: int) -> torch.Tensor:
    """Values of the whole response, from each rank's part."""
    assert total_length >= response_length
    whole = tensor.new_zeros(response_length)
    whole[mpu.context_parallel_rank :: 2] = tensor
    dist.all_reduce(whole)
    return whole
