"""The reference engine on models whose logits are more than a matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.samples import Sample
from qtune_service.scoring.reference import ReferenceScorer, token_budget_batches

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float32",
}
GPT2: dict[str, Any] = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}


def save(folder: Path, name: str, sizes: dict[str, Any]) -> ModelSpec:
    """Save a random model of a transformers class."""
    import torch
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    model_class(model_class.config_class(**sizes)).save_pretrained(folder)
    return ModelSpec(name=str(folder), dtype="float32")


def made_samples() -> list[Sample]:
    """Build random sequences with random masks, one of them with nothing to score."""
    rng = np.random.default_rng(3)
    masks = [(rng.random(n) < 0.6).astype(np.int8) for n in (1, 2, 3, 100, 33, 60)]
    return [Sample(rng.integers(0, 400, len(mask), dtype=np.int32), mask) for mask in masks]


@pytest.mark.parametrize(
    ("name", "sizes", "path"),
    [
        ("LlamaForCausalLM", SIZES, "head"),
        ("GPT2LMHeadModel", GPT2, "head"),
        ("MixtralForCausalLM", {**SIZES, "num_local_experts": 4}, "head"),
        ("Gemma2ForCausalLM", {**SIZES, "sliding_window": 16}, "forward"),  # caps its logits
        ("CohereForCausalLM", SIZES, "forward"),  # scales them
        ("GraniteForCausalLM", {**SIZES, "logits_scaling": 4.0}, "forward"),
    ],
)
def test_scores_are_the_model_s_own(tmp_path: Path, name: str, sizes: dict[str, Any], path: str) -> None:
    """Caps and scales of logits are never skipped, and chunks through a cache change nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    spec = save(tmp_path, name, sizes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    scorer = ReferenceScorer(spec, EngineSpec(max_num_batched_tokens=40))
    assert scorer.path == path
    samples = made_samples()
    for sample, scores in zip(samples, scorer.score(samples), strict=True):
        ids = torch.tensor(sample.input_ids, dtype=torch.long)
        with torch.inference_mode():
            log_p = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
        scored = torch.tensor(sample.loss_mask[1:] == 1)
        nll = -log_p.gather(-1, ids[1:, None])[:, 0][scored]
        entropy = -(log_p.exp() * log_p).sum(-1)[scored]
        assert scores.nll.shape == scores.entropy.shape == tuple(nll.shape)
        assert np.abs(scores.nll - nll.numpy()).max(initial=0) < 1e-4
        assert np.abs(scores.entropy - entropy.numpy()).max(initial=0) < 1e-4


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    """A bidirectional encoder with a language model head is found out by what it does."""
    spec = save(tmp_path, "BertLMHeadModel", {**SIZES, "is_decoder": False})
    with pytest.raises(ModelError, match="not causal"):
        ReferenceScorer(spec, EngineSpec())


def test_an_architecture_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    """The error names the architecture, and what transformers has for this model type."""
    spec = save(tmp_path, "LlamaForCausalLM", SIZES)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "QuantumForCausalLM"))
    with pytest.raises(ModelError, match="QuantumForCausalLM") as caught:
        ReferenceScorer(spec, EngineSpec())
    assert "LlamaForCausalLM" in str(caught.value)


def test_tensor_parallelism_is_refused() -> None:
    """The reference engine says that it runs on one device."""
    with pytest.raises(EngineError, match="one device"):
        ReferenceScorer(ModelSpec(name="anything"), EngineSpec(tensor_parallel_size=2))


def test_a_closed_scorer_says_so(tmp_path: Path) -> None:
    """Closing twice is harmless; scoring afterwards is an error."""
    scorer = ReferenceScorer(save(tmp_path, "LlamaForCausalLM", SIZES), EngineSpec())
    scorer.close()
    scorer.close()
    with pytest.raises(EngineError, match="closed"):
        scorer.score(made_samples())


@given(lengths=st.lists(st.integers(0, 50), max_size=30), budget=st.integers(1, 80), size=st.integers(1, 9))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int, size: int) -> None:
    """Each sequence with tokens is in one batch; only a sequence alone may exceed the budget."""
    batches = list(token_budget_batches(lengths, budget, size))
    assert sorted(i for batch in batches for i in batch) == [i for i, n in enumerate(lengths) if n]
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) <= size
        assert len(batch) == 1 or padded <= budget
