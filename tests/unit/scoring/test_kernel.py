"""The Triton kernel: its logic in Triton's interpreter, its code through the compiler, its figures on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton")


def test_the_kernel_s_logic_is_right() -> None:
    """All of kernel_cases.py holds; Triton decides when it is imported whether it interprets, hence the process."""
    cases = Path(__file__).with_name("kernel_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", os.fspath(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(("architecture", "instruction"), [(80, "mma.sync"), (90, "wgmma.mma_async")])
def test_the_kernel_compiles_for_gpus(
    architecture: int, instruction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton makes machine code of it without a GPU at hand: on matrix units, from an asynchronous pipeline."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qtune_service.scoring.kernel import HALF_TILES, _kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = HALF_TILES[-1]
    sizes = {"block_m": tile.rows, "block_n": tile.columns, "block_k": tile.depth}
    constants = {"has_bias": False, "whole_depth": True, "widen": False, **sizes}
    pointers = {"hidden_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": "*bf16", "labels_ptr": "*i64"}
    numbers = dict.fromkeys(("num_rows", "num_columns", "width", "run", "hidden_stride", "weight_stride"), "i32")
    signature = {**pointers, "out_ptr": "*fp32", **numbers, **dict.fromkeys(constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1, 2, 3, 4, 7, 9, 10)}  # as torch's tensors are
    made = compile_kernel(
        ASTSource(_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    assert made.asm["cubin"]
    assert instruction in made.asm["ptx"]
    assert "cp.async" in made.asm["ptx"]
    assert made.metadata.shared <= 99 << 10  # bytes: what the smallest of today's GPUs gives a block


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_kernel_is_exact_on_a_gpu(dtype: torch.dtype) -> None:
    """Every tile that this GPU can run agrees with float64 at a real vocabulary, and one of them can run."""
    from triton.runtime.errors import OutOfResources

    from qtune_service.scoring.kernel import KernelHead, tiles_for
    from qtune_service.scoring.logits import Matrix, exact_scores
    from qtune_service.scoring.statistics import nll_and_entropy

    torch.manual_seed(0)
    hidden = torch.randn(300, 896, device="cuda").to(dtype)
    matrix = Matrix((torch.randn(151_936, 896, device="cuda") * 0.07).to(dtype), None)
    labels = torch.randint(151_936, (300,), device="cuda")
    hidden[17] = torch.nan
    exact = exact_scores(matrix, hidden, labels)
    ran = 0
    for tile in tiles_for(dtype):
        try:
            scores = nll_and_entropy(KernelHead(matrix.weight, None, tile)(hidden, labels))
        except OutOfResources:
            continue
        ran += 1
        torch.testing.assert_close(scores.double(), exact, atol=1e-4, rtol=1e-6, equal_nan=True)
    assert ran
