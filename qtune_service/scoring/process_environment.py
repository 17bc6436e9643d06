"""Prepare an engine process: environment variables, library logging, and vector math.

vLLM reads its variables at import or when an engine is built, and its worker processes inherit them. So they must be
set before: `apply_environment` sets them in this process, `engine_environment` returns them for a Ray runtime_env.
Variables set by the user take precedence.

torch's CPU build takes cos, exp, log and similar functions from MKL, which selects the kernel of each at its first
call. If several threads make that call at once, one of them can compute its part at low precision (errors of 1e-4,
pytorch issue 188792). The table of a rotary embedding is computed once, so such an engine would score incorrectly for
its whole lifetime. `warm_up_vector_math` makes the first calls in one thread.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PLUGIN_NAME = "qtune_service"


def engine_environment() -> dict[str, str]:
    """Return the variables of an engine process."""
    return {
        # In-process engine core: half the start-up time, nearly twice the speed of a tiny model, and batches that
        # depend only on the samples, so that a resumed run equals an uninterrupted one. Tensor parallel workers
        # are processes in any case.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_LOG_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Ray selects the cores. Without Ray, binding rejects tensor parallelism on one NUMA node.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def allocator_environment() -> dict[str, str]:
    """Return variables that the memory allocator of a CPU scoring process reads at start.

    By default glibc returns large blocks to the system at each free, and every new block costs page faults. Here it
    keeps them in huge pages. With 0.5B parameters in bfloat16 on two cores: 85.1% of the matrix-multiplication peak by
    default, 86.8% with kept blocks, 90.2% with huge pages too.
    """
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 << 20),
        "MALLOC_ARENA_MAX": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def apply_environment() -> None:
    """Set missing variables in this process. Call it before importing vllm."""
    for name, value in engine_environment().items():
        os.environ.setdefault(name, value)
    # vLLM sets its log level with the engine. Messages during its import would go to stderr.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress progress bars and deprecation warnings of libraries while an engine loads."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # its variable is read at import only
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plugin_is_allowed() -> bool:
    """Return whether VLLM_PLUGINS allows this package's plugin."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is None or PLUGIN_NAME in allowed.split(",")


FUNCTIONS = (
    "acos",
    "asin",
    "atan",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "expm1",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
)


@functools.cache
def warm_up_vector_math() -> None:
    """Let MKL select its kernels in this thread. Call it once a process, before building a model."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
