"""The vLLM engine's edges: failures, registration, what it refuses."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import ModelError
from qtune_service.scoring.choose_engine import choose_engine
from qtune_service.scoring.vllm.plugin import adapted_name, register
from tests.engine.engine_worker import (
    EngineWorker,
    fail_in_next_call,
    heads,
    is_warm,
    load,
    registered_architectures,
    watch_heads,
)
from tests.engine.exactness import all_cases, difference


def test_a_call_that_failed_half_way_leaves_nothing_behind(vllm_qwen2: EngineWorker) -> None:
    """After an error in the middle of a call the same engine scores the same samples to the same bits."""
    samples = all_cases(vllm_qwen2.info.vocab_size)
    before = vllm_qwen2.score(samples)
    vllm_qwen2.call(fail_in_next_call)
    with pytest.raises(RuntimeError, match="the device is gone"):
        vllm_qwen2.score(samples)
    assert difference(vllm_qwen2.score(samples), before) == 0


def test_engine_info_describes_the_model(vllm_qwen2: EngineWorker) -> None:
    """The manifest gets the model's own architecture, type, limits and vocabulary."""
    info = vllm_qwen2.info
    assert (info.name, info.architecture, info.dtype) == ("vllm", "Qwen2ForCausalLM", "float32")
    assert (info.max_model_len, info.vocab_size) == (512, 1500)


def test_vector_mathematics_are_warm(vllm_qwen2: EngineWorker) -> None:
    """Where the model was built, no threads could make the first call together."""
    assert vllm_qwen2.info
    assert vllm_qwen2.call(is_warm)


def test_only_a_plain_head_is_taken_for_one(vllm_qwen2: EngineWorker) -> None:
    """Whatever a model does to hidden states or logits besides its head is seen in one call."""
    assert vllm_qwen2.info
    assert vllm_qwen2.call(watch_heads) == {
        "as it is": "(1500, 128)",  # without the rows that vLLM pads
        "scaled before": "the model changes the hidden states before its head",
        "scaled after, in place": "the model changes the logits after its head",
        "masked after": "the model changes the logits after its head",
        "no processor": "the model calls vLLM's logits processor 0 times",
        "another class": "the model calls vLLM's logits processor 0 times",
        "soft_cap": "the model caps its logits",
        "scale": "the model scales its logits",
        "quantised": "the head is quantized (Fp8Method)",
        "as it was found": "(1500, 128)",
    }
    vllm_qwen2.score(all_cases(1500)[:2])
    assert vllm_qwen2.call(heads) == ["blockwise: the kernel needs a GPU, and the model is on cpu"]


def test_the_plugin_registers_every_causal_architecture(vllm_qwen2: EngineWorker) -> None:
    """Any vLLM process gets a scoring variant of each causal model from the entry point, and keeps all it had."""
    (entry,) = entry_points(group="vllm.general_plugins", name="qtune_service")
    assert entry.load() is register
    before, causal, after = vllm_qwen2.call(registered_architectures)
    assert {"LlamaForCausalLM", "Qwen3MoeForCausalLM", "Gemma2ForCausalLM", "GPTNeoXForCausalLM"} <= set(causal)
    assert set(after) == set(before) | {adapted_name(name) for name in causal}


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "LlavaForConditionalGeneration", "QuantumForCausalLM"])
def test_an_unsupported_architecture_is_refused_by_name(
    vllm_qwen2: EngineWorker, random_qwen2: Path, tmp_path: Path, architecture: str
) -> None:
    """Encoders, multimodal models and unknown ones end before any weight is read, with what is supported."""
    config = json.loads((random_qwen2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    with pytest.raises(ModelError, match=architecture) as caught:
        vllm_qwen2.call(load, ModelSpec(name=str(tmp_path)), EngineSpec())
    assert "decoder-only causal" in str(caught.value)


def test_auto_prefers_vllm_and_says_why(vllm_qwen2: EngineWorker, random_qwen2: Path) -> None:
    """`auto` names vLLM's version and the architecture it found."""
    choice = vllm_qwen2.call(choose_engine, ModelSpec(name=str(random_qwen2)), EngineSpec())
    assert choice.name == "vllm"
    assert "Qwen2ForCausalLM" in choice.reason


def test_auto_takes_the_reference_engine_for_a_model_that_vllm_lacks(
    vllm_qwen2: EngineWorker, random_qwen2: Path, tmp_path: Path
) -> None:
    """`auto` falls back with the reason: here a causal architecture that vLLM has no code for."""
    config = json.loads((random_qwen2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["QuantumForCausalLM"]}))
    choice = vllm_qwen2.call(choose_engine, ModelSpec(name=str(tmp_path)), EngineSpec())
    assert choice.name == "reference"
    assert "QuantumForCausalLM" in choice.reason
