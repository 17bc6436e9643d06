"""What a model's tokens cost, by the sizes in its configuration; no weight is read.

Kinds whose sizes mean something else are refused: a guess would look like knowledge.
"""

from __future__ import annotations

from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.errors import ModelError
from qtune_service.pipeline.cost import ModelCost, ModelShape
from qtune_service.scoring.model_info import load_text_config

TWO_MATRICES = frozenset({"gpt_neox", "nemotron", "phi", "starcoder2"})
"""Kinds whose feed-forward part has no gate."""
DTYPE_BYTES = {"float32": 4}


def cost_of(spec: ModelSpec) -> ModelCost:
    """From the model's configuration. Raises ModelError for kinds that these sizes do not describe."""
    config = load_text_config(spec)
    try:
        return _shape(config).cost
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"the sizes of {spec.name} are not of the usual kind: {error}", "Give --params: weights that a token meets."
        ) from error


def _shape(config: Any) -> ModelShape:
    if getattr(config, "kv_lora_rank", None):
        raise TypeError("its attention is compressed")
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    met, held = _mlp(config, hidden)
    return ModelShape(
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        vocab=int(config.vocab_size),
        mlp=met,
        mlp_held=held,
        ties_embeddings=bool(config.tie_word_embeddings),
    )


def _mlp(config: Any, hidden: int) -> tuple[int, int]:
    """Weights of a layer that a token meets, and that there are. Layers without experts among others count alike."""
    matrices = 2 if config.model_type in TWO_MATRICES else 3
    met = getattr(config, "num_experts_per_tok", None)
    if not met:
        size = matrices * hidden * int(config.intermediate_size)
        return size, size
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    there = next((int(n) for name in names if (n := getattr(config, name, None))), None)
    if there is None:
        raise TypeError("it does not say how many experts it has")
    size = matrices * hidden * int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    shared = matrices * hidden * int(getattr(config, "shared_expert_intermediate_size", None) or 0)
    shared += size * int(getattr(config, "n_shared_experts", None) or 0)
    return met * size + shared, there * size + shared


def bytes_of_dtype(spec: ModelSpec) -> int:
    """Of a weight in memory."""
    own = "" if spec.dtype != "auto" else str(getattr(load_text_config(spec), "dtype", "")).removeprefix("torch.")
    return DTYPE_BYTES.get(own or spec.dtype, 2)
