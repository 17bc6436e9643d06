"""What a model says about itself, read from its configuration alone.

Both engines ask the same questions before a weight is loaded: is it there, is it a causal language model, how long a
sample may be, in which type it computes. Each wrong answer ends here, with a message of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.errors import ModelError

CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
# Rotary types whose max_position_embeddings is the extended length already.
_ROPE_EXTENDED = frozenset({"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts of a model's configuration that scoring needs."""

    name: str
    architectures: tuple[str, ...]
    dtype: str
    vocab_size: int
    max_model_len: int | None
    """In tokens; None where neither the configuration nor the spec sets a limit."""
    config: Any
    """The transformers configuration itself."""

    @property
    def architecture(self) -> str:
        """The first architecture, which is the one that is loaded."""
        return self.architectures[0]


def read_checkpoint(model: ModelSpec) -> Checkpoint:
    """Read a model's configuration. Raises ModelError where it is missing, unreadable or names no causal model."""
    config = _load_config(model)
    text = config.get_text_config()
    architectures = tuple(config.architectures or ())
    if not architectures:
        raise ModelError(
            f"{model.name}: its config.json names no architecture, so how to run it is unknown.",
            'Add "architectures": ["...ForCausalLM"] to config.json.',
        )
    if not architectures[0].endswith(CAUSAL_SUFFIXES):
        raise unsupported_architecture(model.name, architectures[0], "any engine", "")
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported_architecture(model.name, architectures[0], "any engine", "This one is an encoder-decoder.")
    return Checkpoint(
        name=model.name,
        architectures=architectures,
        dtype=_dtype(model, text),
        vocab_size=int(text.vocab_size),
        max_model_len=_length_limit(model, text),
        config=config,
    )


def unsupported_architecture(model: str, architecture: str, engine: str, detail: str) -> ModelError:
    """Build the error for a model of a kind that cannot be scored."""
    return ModelError(
        f"{model}: architecture {architecture} cannot be scored by {engine}.",
        f"Supported are decoder-only causal language models (...ForCausalLM). {detail}".rstrip(),
    )


def _load_config(model: ModelSpec) -> Any:
    from transformers import AutoConfig

    looks_local = model.name.startswith((".", "~", os.sep)) or Path(model.name).exists()
    path = Path(model.name).expanduser()
    if looks_local and not path.is_dir():
        raise ModelError(
            f"Model folder {model.name} does not exist.",
            "Give a folder with config.json and weights, or a model hub id.",
        )
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(
            f"Model folder {model.name} has no config.json.", "Give the folder that holds config.json and the weights."
        )
    source = str(path) if looks_local else model.name
    try:
        return AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:  # no such repository, no network, bad JSON, unknown model type
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"The configuration of model {model.name} cannot be read: {reason}",
            "Check the name, the network and the revision; a model with code of its own needs trust_remote_code.",
        ) from error


def _dtype(model: ModelSpec, text_config: Any) -> str:
    """`auto` is the type in which the model was saved, on both engines."""
    if model.dtype != "auto":
        return model.dtype
    saved = str(getattr(text_config, "dtype", None) or "float32").removeprefix("torch.")
    return saved if saved in ("float32", "bfloat16", "float16") else "bfloat16"


def _length_limit(model: ModelSpec, text_config: Any) -> int | None:
    limits = [int(value) for key in _LENGTH_KEYS if (value := getattr(text_config, key, None))]
    if not limits:
        return model.max_model_len
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = [entry for entry in (rope, *rope.values()) if isinstance(entry, dict) and "rope_type" in entry]
    factors = [float(kind.get("factor") or 1) for kind in kinds if kind["rope_type"] not in _ROPE_EXTENDED]
    longest = int(max(limits) * (factors[-1] if factors else 1))
    if model.max_model_len is not None and model.max_model_len > longest:
        raise ModelError(
            f"max_model_len {model.max_model_len} is more than model {model.name} can read: {longest} tokens.",
            f"Set max_model_len to {longest} or less, or leave it out.",
        )
    is_longrope = any(kind["rope_type"] in ("su", "longrope") for kind in kinds)  # one set of factors a run: the short
    original = getattr(text_config, "original_max_position_embeddings", None) if is_longrope else None
    return model.max_model_len or int(original or longest)
