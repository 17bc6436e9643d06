"""Classify vLLM's engine arguments by name, for `engine.vllm` of a job.

Some are set by this package and refused, some only describe the machine, and all others define the scores. A server
accepts a list of names with plain values. Names that a later vLLM adds therefore define scores and are refused by
servers until they are listed here. This module imports no vllm: scoring/vllm/arguments.py checks names against the
installed version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FIELD = "it has a field of its own: "
_SCORES = "scoring sets it, and other values give no scores"
OWN: Mapping[str, str] = {
    "model": f"{_FIELD}model.name",
    "model_weights": f"{_FIELD}model.name",
    "revision": f"{_FIELD}model.revision",
    "code_revision": f"{_FIELD}model.revision",
    "trust_remote_code": f"{_FIELD}model.trust_remote_code",
    "dtype": f"{_FIELD}model.dtype",
    "max_model_len": f"{_FIELD}model.max_model_len",
    "tokenizer": f"{_FIELD}model.tokenizer",
    "tokenizer_revision": f"{_FIELD}model.tokenizer",
    "tokenizer_mode": "the engine receives tokens and loads no tokenizer",
    "tensor_parallel_size": f"{_FIELD}engine.tensor_parallel_size",
    "max_num_batched_tokens": f"{_FIELD}engine.max_num_batched_tokens",
    "enable_prefix_caching": f"{_FIELD}engine.enable_prefix_caching",
    "gpu_memory_utilization": f"{_FIELD}engine.gpu_memory_utilization",
    "hf_token": "the token comes from the environment (HF_TOKEN), because the spec is stored in the output",
    "seed": "scoring draws no random numbers",
    "runner": _SCORES,
    "convert": _SCORES,
    "pooler_config": _SCORES,
    "skip_tokenizer_init": _SCORES,
    "worker_extension_cls": _SCORES,
    "additional_config": _SCORES,
    "model_class_overrides": _SCORES,
    "io_processor_plugin": _SCORES,
    "logits_processors": "they apply to generated tokens, and scoring generates none",
    "speculative_config": "it applies to generated tokens, and scoring generates none",
    "spec_method": "it applies to generated tokens, and scoring generates none",
    "spec_model": "it applies to generated tokens, and scoring generates none",
    "spec_tokens": "it applies to generated tokens, and scoring generates none",
    "data_parallel_size": "the scoring actors are the data-parallel replicas: set engine.num_actors",
    "data_parallel_size_local": "the scoring actors are the data-parallel replicas: set engine.num_actors",
    "data_parallel_rank": "the scoring actors are the data-parallel replicas: set engine.num_actors",
    "nnodes": "Ray places an engine of several nodes: set pipeline_parallel_size",
    "node_rank": "Ray places an engine of several nodes: set pipeline_parallel_size",
    "use_tqdm_on_load": "it prints to the log of a worker",
}
"""Arguments that `engine.vllm` cannot set, with the reason."""
OWN_OVERRIDES = ("architectures", "auto_map")
"""Keys of `hf_overrides` that cannot be set: the scoring architecture would not be loaded."""
BACKENDS = ("mp", "ray", "uni")
"""Values of `distributed_executor_backend`."""
SIZES = {"pipeline_parallel_size": 1024, "max_num_seqs": 1 << 20}
"""Numbers that this package reads, with their limits."""

MACHINE = frozenset(
    {
        *("pipeline_parallel_size", "enable_expert_parallel", "expert_placement_strategy", "all2all_backend"),
        *("enable_eplb", "eplb_config", "enable_ep_weight_filter", "prefill_context_parallel_size"),
        *("decode_context_parallel_size", "distributed_executor_backend", "distributed_timeout_seconds"),
        *("cpu_distributed_timeout_seconds", "disable_custom_all_reduce", "max_parallel_loading_workers"),
        *("numa_bind", "numa_bind_nodes", "numa_bind_cpus", "ray_workers_use_nsight"),
        *("load_format", "download_dir", "model_loader_extra_config", "ignore_patterns", "pt_load_map_location"),
        *("safetensors_load_strategy", "safetensors_prefetch_num_threads", "safetensors_prefetch_block_size"),
        *("max_num_seqs", "max_num_scheduled_tokens", "max_num_active_seqs", "enable_chunked_prefill"),
        *("long_prefill_token_threshold", "async_scheduling", "scheduling_policy"),
        *("block_size", "num_gpu_blocks_override", "kv_cache_memory_bytes", "prefix_caching_hash_algo"),
        *("cpu_offload_gb", "cpu_offload_params", "offload_backend", "offload_group_size", "offload_num_in_group"),
        *("offload_prefetch_step", "offload_params", "kv_offloading_size", "kv_offloading_backend"),
        *("enforce_eager", "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size"),
        *("optimization_level", "performance_mode", "disable_cascade_attn", "enable_flashinfer_autotune"),
        *("attention_backend", "moe_backend", "linear_backend", "kernel_config"),
        *("disable_log_stats", "aggregate_engine_logging", "log_level", "log_config_file", "logging_config"),
        *("otlp_traces_endpoint", "collect_detailed_traces", "profiler_config", "enable_mfu_metrics"),
        *("kv_cache_metrics", "cudagraph_metrics", "limit_mm_per_prompt", "language_model_only", "skip_mm_profiling"),
        *("enable_sleep_mode", "served_model_name"),
    }
)
"""Arguments about the machine: they move scores by rounding only, as another number of actors does."""

SERVER = frozenset(
    {
        *("pipeline_parallel_size", "enable_expert_parallel", "expert_placement_strategy", "all2all_backend"),
        *("distributed_executor_backend", "disable_custom_all_reduce", "quantization", "kv_cache_dtype"),
        *("max_num_seqs", "enable_chunked_prefill", "long_prefill_token_threshold", "block_size"),
        *("kv_cache_memory_bytes", "num_gpu_blocks_override", "cpu_offload_gb", "enforce_eager"),
        *("disable_cascade_attn", "disable_sliding_window", "attention_backend", "moe_backend", "linear_backend"),
        *("safetensors_load_strategy", "language_model_only", "allow_deprecated_quantization"),
    }
)
"""Arguments that a server accepts without QTUNE_ALLOW_REMOTE_CODE. None runs code of the job or names a file."""
_WORD = re.compile(r"[A-Za-z0-9][\w+-]{0,99}", re.ASCII)


def defining(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that decide scores."""
    return {name: value for name, value in arguments.items() if name not in MACHINE}


def refused_by_server(arguments: Mapping[str, Any]) -> str | None:
    """Return the first argument that may run code or read files, or None if a server can accept all of them."""
    for name, value in arguments.items():
        is_plain = value is None or isinstance(value, (bool, int, float))
        is_word = isinstance(value, str) and _WORD.fullmatch(value) is not None
        if name not in SERVER or not (is_plain or is_word):
            return name
    return None


def problem_of(arguments: Mapping[str, Any]) -> str:
    """Return why the arguments cannot be used in any job; empty if there is no reason."""
    return next(filter(None, (_problem(name, value) for name, value in arguments.items())), "")


def _problem(name: str, value: Any) -> str:
    if name in OWN:
        return f"`vllm.{name}` cannot be set: {OWN[name]}"
    if name == "hf_overrides" and not isinstance(value, dict):
        return "`vllm.hf_overrides` must be an object"
    if name == "hf_overrides" and (keys := sorted(set(OWN_OVERRIDES) & set(value))):
        return f"`vllm.hf_overrides.{keys[0]}` cannot be set: {_SCORES}"
    allowed = {"distributed_executor_backend": value in BACKENDS, "load_format": value != "dummy"}
    if not allowed.get(name, True):
        return f"`vllm.{name}` cannot be {value!r}: {_WHY[name]}"
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if name in SIZES and not (is_number and 1 <= value <= SIZES[name]):
        return f"`vllm.{name}` must be a number from 1 to {SIZES[name]}"
    return ""


_WHY = {
    "distributed_executor_backend": f"it is one of {', '.join(BACKENDS)}",
    "load_format": "it loads random weights",
}
