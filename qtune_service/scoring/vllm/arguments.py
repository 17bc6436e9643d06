"""Build the arguments of vLLM's engine: those of scoring, defaults for the device, and `engine.vllm` of the job.

Names in `engine.vllm` are compared with the fields of `EngineArgs` of the installed version, read from its source, so
that a driver can check them without importing vllm. ../../vllm_arguments.py says which names a job can set.

Defaults on a GPU: no CUDA graphs, which are captured for small batches only and take up to a minute; scoring runs steps
of thousands of tokens. Logits in blocks of 1 or 2 GiB on large cards. If the job has no length limit of its own, vLLM
reduces the model's limit to what its attention cache holds. A longer sample then ends the job instead of being
rejected (`check_fits`), since another machine could score it. The longest sample of a job is not known before its
records are encoded: the bytes of a record are no bound, as a template may add text or repeat it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import ModelError, SpecError
from qtune_service.samples import Sample
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint
from qtune_service.scoring.vllm.plugin import adapted_name

TASK = "token_classify"
"""A per-token task of both model runners of vLLM."""
CONFIG_KEY = "qtune"
"""Key of this package in `additional_config`."""
MAX_NUM_SEQS, MOST_SEQS = 256, 2048
"""Samples per step: the default, and the most for short samples."""
FILL = 1.5
"""Samples are shorter than their mean in some steps."""
STEP_TOKENS = 16384
"""vLLM's default of `max_num_batched_tokens` on large GPUs."""
MAX_TOKEN_IDS = 1 << 26
CPU_BLOCK_TOKENS = 32
"""Block size of the prefix cache on a CPU."""
AUTO_FIT = -1
"""vLLM's `max_model_len` for the largest limit, up to the model's own, that the attention cache holds."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device that the engine runs on."""

    is_cpu: bool
    memory_bytes: int = 0
    """Memory of one GPU."""

    @classmethod
    def here(cls) -> Device:
        """Return the device of vLLM's current platform."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            return cls(is_cpu=True)
        return cls(is_cpu=False, memory_bytes=int(current_platform.get_device_total_memory()))


@functools.cache
def installed_names() -> frozenset[str]:
    """Return the names of the installed vLLM's engine arguments; empty if there is no vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    targets = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name) and target.id[0] != "_")


def check_names(engine: EngineSpec) -> None:
    """Raise SpecError for a name in `engine.vllm` that the installed vLLM does not have. Do nothing without vLLM."""
    known = installed_names()
    for name in engine.vllm if known else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise SpecError(
                f"engine.vllm: the installed vLLM has no engine argument {name!r}",
                f"{hint}The names are those of vllm.engine.arg_utils.EngineArgs, as `vllm serve --help` lists them.",
            )


def engine_arguments(
    model: ModelSpec, engine: EngineSpec, checkpoint: Checkpoint, device: Device, worker_extension: str
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`. Raise SpecError for an unknown name in `engine.vllm`."""
    from qtune_service.scoring.logits import default_logits_bytes  # imports torch, which a driver does without

    check_names(engine)
    given: dict[str, Any] = dict(engine.vllm)
    own = {
        "logits_bytes": engine.logits_bytes or default_logits_bytes(device.memory_bytes),
        "head_kernel": engine.head_kernel,
    }
    arguments: dict[str, Any] = {
        "model": checkpoint.name,
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": checkpoint.dtype,
        "max_model_len": _length_limit(model),
        "seed": 0,
        "skip_tokenizer_init": True,
        "runner": "pooling",
        "convert": "none",
        "pooler_config": {"task": TASK},
        "additional_config": {CONFIG_KEY: own},
        "tensor_parallel_size": engine.tensor_parallel_size,
        # None: vLLM enables it for decoders, except where it is not exact (state-space models).
        "enable_prefix_caching": None if engine.enable_prefix_caching else False,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "use_tqdm_on_load": False,
        "worker_extension_cls": worker_extension,
    }
    num_seqs = given.pop("max_num_seqs", None) or MAX_NUM_SEQS
    if engine.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = engine.max_num_batched_tokens
        num_seqs = min(num_seqs, engine.max_num_batched_tokens)
    overrides = dict(given.pop("hf_overrides", None) or {})
    # The plain name stays second, because some settings of vLLM depend on it.
    overrides["architectures"] = [adapted_name(checkpoint.architecture), *checkpoint.architectures]
    if device.is_cpu:
        # The float32 head of pooling models would convert the weight in each call.
        overrides.setdefault("head_dtype", "model")
        arguments["enforce_eager"] = True  # compilation takes a minute and gains nothing here
        arguments["kv_cache_memory_bytes"] = engine.cpu_kv_cache_bytes
        # vLLM's default of 128 shares no shorter prompts. Measured as fast as 128.
        arguments["block_size"] = CPU_BLOCK_TOKENS
    else:
        compilation = given.pop("compilation_config", None) or {}
        is_dict = isinstance(compilation, dict)
        arguments["compilation_config"] = {"cudagraph_mode": "NONE", **compilation} if is_dict else compilation
    return {**arguments, "max_num_seqs": num_seqs, "hf_overrides": overrides, **given}


def _length_limit(model: ModelSpec) -> int | None:
    """Return the job's length limit, or AUTO_FIT where it is the model's own."""
    own = read_checkpoint(model.model_copy(update={"max_model_len": None})).max_model_len
    return AUTO_FIT if own is not None and model.max_model_len in (None, own) else model.max_model_len


def check_fits(samples: Sequence[Sample], limit: int, job_limit: int | None) -> None:
    """Raise ModelError for a sample within the job's limit that the engine's attention cache cannot hold."""
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    if job_limit is not None and limit < longest <= job_limit:
        raise ModelError(
            f"a sample has {longest:,} tokens, and the attention cache of this engine holds {limit:,}",
            "Give the engine more memory (gpu_memory_utilization, cpu_kv_cache_bytes), more GPUs "
            f"(tensor_parallel_size), or set max_model_len to {limit} to reject longer samples.",
        )


def run_arguments(engine: EngineSpec, mean_tokens: float, max_model_len: int) -> dict[str, Any]:
    """Return the arguments that suit the samples of a run: how many of this mean length fill a step.

    vLLM allocates `max_model_len` token ids for each of them, so their product is limited. The job's own number wins.
    """
    wanted = int(FILL * (engine.max_num_batched_tokens or STEP_TOKENS) / max(1.0, mean_tokens))
    room = MAX_TOKEN_IDS // max(1, max_model_len)
    number = max(MAX_NUM_SEQS, min(wanted, room, MOST_SEQS))
    return {} if number == MAX_NUM_SEQS or engine.name not in ("auto", "vllm") else {"max_num_seqs": number}
