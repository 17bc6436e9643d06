"""The parallel state that a test sets: sizes, and the group of data-parallel ranks."""

from __future__ import annotations

from typing import Any

data_parallel_group: Any = None
context_parallel_size = 1
context_parallel_rank = 0
is_last_stage = True


def is_pipeline_last_stage() -> bool:
    return is_last_stage


def get_data_parallel_group(with_context_parallel: bool = False) -> Any:
    assert not with_context_parallel, "ranks of a row's parts are no data-parallel ranks"
    return data_parallel_group


def get_tensor_model_parallel_rank() -> int:
    return 0


def get_context_parallel_rank() -> int:
    return context_parallel_rank


def get_context_parallel_world_size() -> int:
    return context_parallel_size
