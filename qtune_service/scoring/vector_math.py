"""Call the CPU's vector mathematics once before threads do.

torch's CPU build takes cos, exp, log and their like from MKL, which chooses each function's kernel at its first call.
Where that call comes from several threads at once, one of them may compute its part at low precision (errors of 1e-4;
pytorch issue 188792). A rotary embedding's table is made once, so such an engine scores wrongly for its whole life.
"""

from __future__ import annotations

import functools

import torch

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
