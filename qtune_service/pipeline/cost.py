"""What scoring costs, by arithmetic: operations, time, disk and memory of a dataset on a model.

Operations of one forward pass over a sample of T tokens, t of them trained, as the scoring benchmark counts them:

    2 B T           each weight of the body is multiplied and added once a token; B: weights that a token meets
    2 L A T^2       attention: T^2 / 2 pairs, and in each of L layers 2 A for a pair's weight, 2 A for its value
    2 H V t         logits over the vocabulary, of trained tokens alone

with A = heads x head size, H the hidden size, V the vocabulary. It is 2 N + 2 n_layer n_ctx d_attn of Kaplan et al.
(arXiv:2001.08361, table 1; there without the head), and a third of the 6 N + 12 L H Q T of Chowdhery et al. 2022
(arXiv:2204.02311, appendix B, for training), halved where attention is causal. Norms, activations and the entropy
itself are left out: well under a hundredth. Sliding windows and shared prefixes make it less than this.

Bytes and CPU times are those of docs/performance.md, and hold for it as far as its measurements do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SCORES_BYTES_PER_TOKEN = 4.4
PRODUCT_BYTES_PER_TOKEN = 2.8
"""pruned/ and quadrants/ where half of the samples are kept."""
CPU_S_PER_SAMPLE, CPU_S_PER_TOKEN = 100e-6, 1.3e-6
"""Read, encode, write and prune."""
IN_MEMORY_SAMPLES = 4_194_304
"""Up to here the driver finds thresholds in its memory, above by rounds over files."""
THRESHOLD_BYTES_PER_SAMPLE, ROUNDS_BYTES_PER_SAMPLE = 32, 32
"""Of memory; of files while rounds go on."""
DRIVER_BYTES = 430 << 20
"""Of a driver with Ray, whatever the input is."""
WEIGHTS_SHARE = 0.75
"""Of a GPU's memory that weights may take: the engine has 0.9, of which activations and attention cache need some."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder by its sizes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    mlp: int
    """Weights of a layer's feed-forward part that a token meets: 3 x hidden x intermediate where it is gated."""
    mlp_held: int = 0
    """The same, with the experts that it does not meet; 0: none."""
    ties_embeddings: bool = False

    @property
    def attention(self) -> int:
        """Weights of a layer's projections: query and output, key and value."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def cost(self) -> ModelCost:
        """What its tokens cost."""
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
    """What a token costs."""

    body: float
    """Weights that every token meets."""
    pair_flops: float = 0.0
    """Operations of a pair of tokens that attend, in all layers."""
    head: float = 0.0
    """Weights that a trained token meets besides."""
    held: float = 0.0
    """All weights, as they lie in memory."""

    def flops(self, tokens: float, squares: float, trained: float) -> float:
        """Of samples with so many tokens, of so many squared lengths, with so many trained tokens."""
        return 2 * self.body * tokens + self.pair_flops * squares / 2 + 2 * self.head * trained


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the samples that were looked at are."""

    tokens: Sequence[int]
    trained: Sequence[int]

    def flops_per_sample(self, model: ModelCost) -> tuple[float, float]:
        """The mean, and two standard errors of it: what other samples of the same kind would give."""
        pairs = zip(self.tokens, self.trained, strict=True)
        each = [model.flops(tokens, tokens**2, trained) for tokens, trained in pairs]
        mean = sum(each) / len(each)
        if len(each) < 2:
            return mean, 0.0
        variance = sum((one - mean) ** 2 for one in each) / (len(each) - 1)
        return mean, 2 * math.sqrt(variance / len(each))


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job needs besides its GPUs."""

    scores_bytes: float
    product_bytes: float
    cpu_core_hours: float
    driver_bytes: float
    threshold_file_bytes: float


def needs_of(samples: float, tokens: float, sample_keep_ratio: float) -> Needs:
    """By the figures of docs/performance.md."""
    in_memory = samples <= IN_MEMORY_SAMPLES
    return Needs(
        scores_bytes=tokens * SCORES_BYTES_PER_TOKEN,
        product_bytes=tokens * PRODUCT_BYTES_PER_TOKEN * sample_keep_ratio / 0.5,
        cpu_core_hours=(samples * CPU_S_PER_SAMPLE + tokens * CPU_S_PER_TOKEN) / 3600,
        driver_bytes=DRIVER_BYTES + min(samples, IN_MEMORY_SAMPLES) * THRESHOLD_BYTES_PER_SAMPLE,
        threshold_file_bytes=0.0 if in_memory else samples * ROUNDS_BYTES_PER_SAMPLE,
    )


def devices_of(weight_bytes: float, memory_bytes: float) -> int:
    """Devices that must share one model: a power of two, as tensor parallelism wants it."""
    parts = weight_bytes / (memory_bytes * WEIGHTS_SHARE)
    return 1 if parts <= 1 else 2 ** math.ceil(math.log2(parts))
