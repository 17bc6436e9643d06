"""Heads: blocks, shards in two real processes, and how one is chosen."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from qtune_service.scoring.logits import BlockwiseHead, Head, Matrix, ShardedHead, choose_head, exact_scores, fastest
from qtune_service.scoring.reference import plain_matrix
from qtune_service.scoring.statistics import eager_partials, nll_and_entropy

WIDTH, ROWS = 24, 50
CUTS = {"even": (0, 64, 128), "padded at the end": (0, 96, 100), "all on the first": (0, 77, 77)}
"""Columns 0..a-1 on rank 0 and a..b-1 on rank 1."""


def made(vocab: int, *, has_bias: bool = True) -> tuple[torch.Tensor, Matrix, torch.Tensor]:
    """Hidden rows, head and labels, the same in each process."""
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    bias = torch.randn(vocab, generator=generator) if has_bias else None
    weight = torch.randn(vocab, WIDTH, generator=generator)
    return hidden, Matrix(weight, bias), torch.randint(vocab, (ROWS,), generator=generator)


def blockwise(matrix: Matrix, block_rows: int = 7) -> BlockwiseHead:
    return BlockwiseHead(matrix.project, block_rows, eager_partials)


def _rank(rank: int, store: str, results: str) -> None:
    """One of two tensor parallel processes: score its shard of each cut, NaN, and no rows at all; save what it got."""
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def all_gather(rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(2)]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    found = {}
    for name, cut in CUTS.items():
        hidden, matrix, labels = made(cut[2])
        hidden[5] = math.nan
        assert matrix.bias is not None
        own = slice(cut[rank], cut[rank + 1])
        shard = Matrix(matrix.weight[own], matrix.bias[own])
        head = ShardedHead(blockwise(shard), own.start, own.stop - own.start, all_gather)
        found[name] = nll_and_entropy(head(hidden, labels))
        assert head(hidden[:0], labels[:0]).shape == (0, 4)
    torch.save(found, f"{results}{rank}")
    distributed.destroy_process_group()


def test_two_processes_with_half_of_the_vocabulary_each_are_exact(tmp_path: Path) -> None:
    """Partial sums over shards, one of them empty, are within 1e-5 nats of float64 on both ranks; NaN stays NaN."""
    results = str(tmp_path / "rank")
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), results), nprocs=2)
    ranks = [torch.load(f"{results}{rank}") for rank in range(2)]
    for name, cut in CUTS.items():
        hidden, matrix, labels = made(cut[2])
        exact = exact_scores(matrix, hidden, labels)
        exact[5] = math.nan
        assert torch.equal(ranks[0][name].nan_to_num(-1), ranks[1][name].nan_to_num(-1))
        torch.testing.assert_close(ranks[0][name].double(), exact, atol=1e-5, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("has_bias", [True, False])
def test_blocks_of_rows_are_exact(has_bias: bool) -> None:
    """The last block may be short, and there may be no rows."""
    hidden, matrix, labels = made(90, has_bias=has_bias)
    head = blockwise(matrix)
    assert (nll_and_entropy(head(hidden, labels)) - exact_scores(matrix, hidden, labels)).abs().max() < 1e-5
    assert head(hidden[:0], labels[:0]).shape == (0, 4)


def test_a_rank_without_logits_gives_rows_that_nobody_reads() -> None:
    """Where vLLM gathers logits on the first rank only, the others return something finite of the right size."""
    hidden, _, labels = made(90)
    scores = nll_and_entropy(BlockwiseHead(lambda _: None, 7, eager_partials)(hidden, labels))
    assert scores.shape == (ROWS, 2)
    assert torch.isfinite(scores).all()


# --- the choice


def delayed(head: Head, seconds: float) -> Head:
    def late(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return head(hidden, labels)

    return late


def test_the_fastest_right_head_is_taken() -> None:
    """One that is wrong or fails is left out however fast it is; of the others the fastest wins."""
    _, matrix, _ = made(90)
    right = blockwise(matrix)

    def wrong(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return right(hidden, labels) * 1.01

    def broken(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory\nmore")

    def late_wrong(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        partials = right(hidden, labels)
        partials[-1] *= 1.01  # one row, in the last block
        return partials

    candidates = {"wrong": wrong, "wrong at the end": late_wrong, "broken": broken, "good": delayed(right, 0.02)}
    candidates["slow"] = delayed(right, 0.2)
    choice = fastest(delayed(right, 0.1), candidates, matrix, rows=20)
    assert choice.head is candidates["good"]
    assert choice.description == "good"


def test_a_kernel_that_is_no_faster_is_not_used() -> None:
    """A head that wins no time leaves the blocks in place, and the choice says so."""
    _, matrix, _ = made(90)
    right = blockwise(matrix)
    choice = fastest(right, {"slow": delayed(right, 0.05)}, matrix, rows=20)
    assert choice.head is right
    assert choice.description == "blockwise: the kernel is not faster on this device"


def test_a_kernel_that_is_wrong_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """NaN and failure are reasons, in the choice and in the log, and never an error of the job."""
    _, matrix, _ = made(90)
    right = blockwise(matrix)

    def nan(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return right(hidden, labels) * math.nan

    choice = fastest(right, {"kernel A": nan}, matrix, rows=20)
    assert choice.head is right
    assert choice.description == "blockwise: kernel A is off by nan nats"
    assert "off by nan nats" in caplog.text


def test_out_of_memory_in_the_trial_is_not_swallowed() -> None:
    """A device too small for the trial is too small for the job."""
    _, matrix, _ = made(90)

    def greedy(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("GPU")

    with pytest.raises(torch.OutOfMemoryError):
        fastest(blockwise(matrix), {"greedy": greedy}, matrix, rows=20)


def test_without_a_gpu_blocks_are_used_and_say_why() -> None:
    """The manifest shows that there was no choice, and a reason given by the caller is kept."""
    _, matrix, _ = made(90)
    assert choose_head(blockwise(matrix), matrix).description.endswith("needs a GPU, and the model is on cpu")
    assert choose_head(blockwise(matrix), "the head is quantized").description == "blockwise: the head is quantized"


class LoraLinear(torch.nn.Linear):  # type: ignore[misc]  # torch is not typed here
    """Stands for any head that is more than its weight."""


def test_only_a_plain_linear_layer_is_a_matrix() -> None:
    """Adapters, quantised heads, hooks and parametrisations are found out."""
    plain = torch.nn.Linear(4, 6)
    matrix = plain_matrix(plain)
    assert isinstance(matrix, Matrix)
    assert matrix.weight.data_ptr() == plain.weight.data_ptr()
    assert matrix.bias is not None
    assert plain_matrix(LoraLinear(4, 6)) == "the head is a LoraLinear"
    hooked = torch.nn.Linear(4, 6)
    hooked.register_forward_hook(lambda *_: None)
    assert plain_matrix(hooked) == "the head has hooks"
    assert isinstance(plain_matrix(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 6))), str)
