"""Check that scores are correct on this machine: `python -m qtune_service.scoring.selfcheck ENGINE`.

It scores a few sequences of a tiny random Llama with the engine and compares them with a float64 softmax over the full
logits.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.choose_engine import build_scorer

VOCAB_SIZE, LENGTHS = 320, (24, 65, 2, 40)


def write_tiny_model(folder: str) -> None:
    """Save a random two-layer Llama with head size 32, the minimum of vLLM's CPU attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,  # confident enough for scores far from uniform
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def tiny_samples() -> list[Sample]:
    """Return random sequences with one or two scored spans."""
    rng = np.random.default_rng(0)
    samples = []
    for length in LENGTHS:
        mask = np.zeros(length, np.int8)
        mask[length // 2 :] = 1
        mask[1 : length // 4] = 1
        samples.append(Sample(rng.integers(0, VOCAB_SIZE, length, dtype=np.int32), mask))
    return samples


def exact_scores(folder: str, sample: Sample) -> NDArray[np.float64]:
    """Return NLL and entropy (n, 2) of a sample in nats, from a float64 softmax over the full logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor(sample.input_ids[None], dtype=torch.long)).logits[0, :-1].double()
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, torch.tensor(sample.input_ids[1:], dtype=torch.long)[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    scored = torch.tensor(sample.loss_mask[1:] == 1)
    return np.asarray(torch.stack((nll, entropy), -1)[scored].numpy())


def largest_difference(folder: str, samples: Sequence[Sample], scores: Sequence[TokenScores]) -> float:
    """Return the largest |difference| of any NLL or entropy from the exact value, in nats."""
    differences = [
        np.abs(np.stack((s.nll, s.entropy), -1) - exact_scores(folder, sample)).max(initial=0.0)
        for sample, s in zip(samples, scores, strict=True)
    ]
    return float(max(differences))


def main() -> int:
    """Print `max difference X nats`."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(folder)
        samples = tiny_samples()
        engine = EngineSpec.model_validate({"name": sys.argv[1]})
        scorer = build_scorer(ModelSpec(name=folder, dtype="float32"), engine)
        scores = scorer.score(samples)
        scorer.close()
        sys.stdout.write(f"max difference {largest_difference(folder, samples, scores):.3e} nats\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
