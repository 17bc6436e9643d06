"""Environment variables of an engine process.

vLLM reads its variables when it is imported or when an engine is built, and its worker processes inherit them, so
they must be in place first: `apply_environment` for this process, `engine_environment` as a Ray runtime_env. What the
user has set wins.

Call the CPU's vector mathematics once before threads do.

torch's CPU build takes cos, exp, log and their like from MKL, which chooses each function's kernel at its first call.
Where that call comes from several threads at once, one of them may compute its part at low precision (errors of 1e-4;
pytorch issue 188792). A rotary embedding's table is made once, so such an engine scores wrongly for its whole life.
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
    """Variables for a process that holds an engine."""
    return {
        # In-process engine core: half the start-up, nearly twice the speed of a tiny model, and batches that depend
        # on the samples alone, which makes a resumed run equal to an undisturbed one. Tensor parallel workers are
        # processes either way.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_LOG_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Ray has chosen the cores; outside of it, binding refuses tensor parallelism on one NUMA node.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }


def allocator_environment() -> dict[str, str]:
    """Variables that a process which runs a model on a CPU must start with: its memory allocator reads them once.

    glibc gives large blocks back to the system at each free, and every new one costs page faults; here it keeps them,
    in huge pages. On two cores, 0.5B parameters in bfloat16: 85.1% of the matrix-multiplication peak without, 86.8%
    with the blocks kept, 90.2% with huge pages too.
    """
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 << 20),
        "MALLOC_ARENA_MAX": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def apply_environment() -> None:
    """Set what is not set yet in this process. Call before vllm is imported."""
    for name, value in engine_environment().items():
        os.environ.setdefault(name, value)
    # vLLM sets its log level up with the engine; what it says while it is imported would go to stderr.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and deprecation warnings of libraries from the user while an engine is loaded."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # reads its variable at import, which may be long past
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def plugin_is_allowed() -> bool:
    """Whether VLLM_PLUGINS lets vLLM load this package's plugin."""
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
    """Have MKL choose its kernels, in this thread alone. Once a process, before a model is built in it."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(one)
