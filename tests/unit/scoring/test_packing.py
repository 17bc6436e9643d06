"""Which models are packed, and that packing never mixes sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.config import EngineSpec
from qtune_service.scoring.packing import UnpackableError, packed_attention, packed_batches
from qtune_service.scoring.reference import ReferenceScorer
from tests.unit.scoring.test_reference import GPT2, SIZES, save

BLOOM: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 2}
MAMBA: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("name", "sizes", "dtype", "batches"),
    [
        ("LlamaForCausalLM", SIZES, "float32", "packed"),
        ("Qwen3ForCausalLM", SIZES, "bfloat16", "packed"),
        ("GPT2LMHeadModel", GPT2, "float32", "packed"),
        ("MistralForCausalLM", {**SIZES, "sliding_window": 16}, "float32", "attends to the last 16 tokens only"),
        ("BloomForCausalLM", BLOOM, "bfloat16", "packed sequences influence each other"),  # within bf16's tolerance
        ("MambaForCausalLM", MAMBA, "float32", "sequences in a pack differ"),  # its state runs on
        ("GraniteForCausalLM", {**SIZES, "logits_scaling": 4.0}, "float32", "one sequence at a time"),
    ],
)
def test_a_model_is_packed_only_where_that_is_exact(
    tmp_path: Path, name: str, sizes: dict[str, Any], dtype: str, batches: str
) -> None:
    """Windows, attention of a model's own, and state across borders are found out, and the manifest says so."""
    spec = save(tmp_path, name, sizes).model_copy(update={"dtype": dtype, "max_model_len": 128})
    scorer = ReferenceScorer(spec, EngineSpec())
    found = scorer.info.batches
    assert found == batches if batches == "packed" else found.startswith("padded: ") and batches in found
    scorer.close()


@pytest.mark.parametrize(
    "more",
    [
        {"softcap": 30.0},
        {"sliding_window": 8},
        {"s_aux": torch.zeros(2)},
        {"is_causal": False},
        {"cu_seq_lens_q": None},
    ],
)
def test_attention_that_is_more_than_causal_is_refused(more: dict[str, Any]) -> None:
    """An argument that changes what attention means is never dropped."""
    x = torch.randn(1, 2, 5, 4)
    borders = {"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32), "max_length_q": 5}
    module = torch.nn.Module()
    assert packed_attention(module, x, x, x, None, **borders)[0].shape == (1, 5, 2, 4)
    with pytest.raises(UnpackableError):
        packed_attention(module, x, x, x, None, **{**borders, **more})


@given(lengths=st.lists(st.integers(0, 50), max_size=30), budget=st.integers(1, 80))
def test_packs_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    """Each sequence with tokens is in one pack; only a sequence alone may exceed the budget."""
    packs = list(packed_batches(lengths, budget))
    assert sorted(i for pack in packs for i in pack) == [i for i, n in enumerate(lengths) if n]
    assert all(len(pack) == 1 or sum(lengths[i] for i in pack) <= budget for pack in packs)
