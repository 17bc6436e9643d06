"""Compute the cost of scoring a dataset with a model: operations, time, disk and memory.

Operations of one forward pass over a sample of T tokens, t of them trained, as the scoring benchmark counts them:

    2 B T           each weight of the body is multiplied and added once a token (B: weights that a token uses)
    2 L A T^2       attention: T^2 / 2 pairs, and in each of L layers 2 A for a pair's weight, 2 A for its value
    2 H V t         logits over the vocabulary, of trained tokens alone

with A = heads x head size, H the hidden size, V the vocabulary. It is 2 N + 2 n_layer n_ctx d_attn of Kaplan et al.
(arXiv:2001.08361, table 1, without the head), and a third of the 6 N + 12 L H Q T of Chowdhery et al. 2022
(arXiv:2204.02311, appendix B, for training), halved where attention is causal. Norms, activations and the entropy
itself are left out: they are well under 1%. Sliding windows and shared prefixes make the cost smaller than this.

B, A, H and V come from the model's configuration, and no weight is read. Architectures with other meanings of these
sizes are refused, because a guess would look reliable. Bytes and CPU times come from
docs/reference/performance.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.errors import ModelError
from qtune_service.scoring.model_config import load_text_config
from qtune_service.selection.distributed import MAX_IN_MEMORY_SAMPLES

SCORES_BYTES_PER_TOKEN = 4.4
PRODUCT_BYTES_PER_TOKEN = 2.8
"""Of pruned/ and quadrants/, where half of the samples are kept."""
CPU_S_PER_SAMPLE, CPU_S_PER_TOKEN = 100e-6, 1.3e-6
"""To read, encode, write and prune."""
THRESHOLD_BYTES_PER_SAMPLE = 32
"""Memory of the driver up to MAX_IN_MEMORY_SAMPLES."""
ROUNDS_BYTES_PER_SAMPLE = 32
"""Files of the workers above that number."""
DRIVER_BYTES = 430 << 20
"""Memory of a driver with Ray, for any input."""
WEIGHTS_SHARE = 0.75
"""Share of a GPU's memory for weights. The engine has 0.9 of it, and activations and attention cache need some."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    mlp: int
    """Weights of a layer's feed-forward part that a token uses: 3 x hidden x intermediate where it is gated."""
    mlp_held: int = 0
    """The same, including experts that the token does not use. 0: no such experts."""
    ties_embeddings: bool = False

    @property
    def attention(self) -> int:
        """Return the weights of a layer's projections: query, output, key and value."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def cost(self) -> ModelCost:
        """Return the cost of this model's tokens."""
        held = self.layers * (self.attention + (self.mlp_held or self.mlp))
        embeddings = self.vocab * self.hidden * (1 if self.ties_embeddings else 2)
        return ModelCost(
            body=self.layers * (self.attention + self.mlp),
            pair_flops=4 * self.layers * self.heads * self.head_dim,
            head=self.vocab * self.hidden,
            held=held + embeddings,
        )


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The cost of a token."""

    body: float
    """Weights that every token uses."""
    pair_flops: float = 0.0
    """Operations for a pair of attending tokens, in all layers."""
    head: float = 0.0
    """Further weights that a trained token uses."""
    held: float = 0.0
    """All weights in memory."""

    def flops(self, tokens: float, squares: float, trained: float) -> float:
        """Return the operations of samples, by their sums of tokens, squared lengths and trained tokens."""
        return 2 * self.body * tokens + self.pair_flops * squares / 2 + 2 * self.head * trained


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of the samples that were encoded."""

    tokens: Sequence[int]
    trained: Sequence[int]

    def flops_per_sample(self, model: ModelCost) -> tuple[float, float]:
        """Return the mean, and two standard errors of it: the spread over other samples of the same kind."""
        pairs = zip(self.tokens, self.trained, strict=True)
        each = [model.flops(tokens, tokens**2, trained) for tokens, trained in pairs]
        mean = sum(each) / len(each)
        if len(each) < 2:
            return mean, 0.0
        variance = sum((one - mean) ** 2 for one in each) / (len(each) - 1)
        return mean, 2 * math.sqrt(variance / len(each))


@dataclass(frozen=True, slots=True)
class Needs:
    """Resources of a job other than its GPUs."""

    scores_bytes: float
    product_bytes: float
    cpu_core_hours: float
    driver_bytes: float
    threshold_file_bytes: float


def needs_of(samples: float, tokens: float, sample_keep_ratio: float) -> Needs:
    """Return the needs of a job by the figures of docs/reference/performance.md."""
    in_memory = samples <= MAX_IN_MEMORY_SAMPLES
    return Needs(
        scores_bytes=tokens * SCORES_BYTES_PER_TOKEN,
        product_bytes=tokens * PRODUCT_BYTES_PER_TOKEN * sample_keep_ratio / 0.5,
        cpu_core_hours=(samples * CPU_S_PER_SAMPLE + tokens * CPU_S_PER_TOKEN) / 3600,
        driver_bytes=DRIVER_BYTES + min(samples, MAX_IN_MEMORY_SAMPLES) * THRESHOLD_BYTES_PER_SAMPLE,
        threshold_file_bytes=0.0 if in_memory else samples * ROUNDS_BYTES_PER_SAMPLE,
    )


def devices_of(weight_bytes: float, memory_bytes: float) -> int:
    """Return how many devices must share one model: a power of two, as tensor parallelism requires."""
    parts = weight_bytes / (memory_bytes * WEIGHTS_SHARE)
    return 1 if parts <= 1 else 2 ** math.ceil(math.log2(parts))


TWO_MATRICES = frozenset({"gpt_neox", "nemotron", "phi", "starcoder2"})
"""Architectures without a gate in the feed-forward part."""
DTYPE_BYTES = {"float32": 4}


def cost_of(spec: ModelSpec) -> ModelCost:
    """Return the cost by a model's configuration. Raise ModelError where these sizes do not describe the model."""
    config = load_text_config(spec)
    try:
        return _shape(config).cost
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"the sizes of {spec.name} are not of the usual kind: {error}", "Give --params: weights that a token uses."
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
    """Return the weights of a layer that a token uses, and all of them. Layers without experts count as the others."""
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
    """Return the bytes of a weight in memory."""
    own = "" if spec.dtype != "auto" else str(getattr(load_text_config(spec), "dtype", "")).removeprefix("torch.")
    return DTYPE_BYTES.get(own or spec.dtype, 2)
