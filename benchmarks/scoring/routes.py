"""Define the routes that score samples inside one process, each built once and then called with all samples.

`script` and `batched` are written as people write them, with full logits, and are not made worse than that: inference
mode, the fused attention kernel, batches of like length. `prompt-logprobs` uses vLLM's flat log-probability lists, the
fastest form it has; of the vocabulary it returns 20 tokens, so its entropy is a guess: the mass that is left is spread
evenly over the other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.process_environment import apply_environment, quiet_libraries
from qtune_service.scoring.scorer import scored_positions

ScoreAll = Callable[[Sequence[Sample]], list[TokenScores]]
BATCH_TOKENS = 2048  # padded tokens in a batch of `batched`; full float32 logits of 152k words: 1.2 GB a copy
TOP_K = 20
TINIEST = torch.finfo(torch.float32).tiny


def build_engine(model: ModelSpec) -> ScoreAll:
    """Build the engine that `qtune` runs, without anything around it."""
    from qtune_service.scoring.vllm.engine import VllmScorer

    return VllmScorer(model, EngineSpec(name="vllm")).score


def build_reference(model: ModelSpec) -> ScoreAll:
    """Build the engine that `qtune` runs where there is no vLLM."""
    from qtune_service.scoring.reference import ReferenceScorer

    return ReferenceScorer(model, EngineSpec(name="reference")).score


# --- transformers


def build_script(model: ModelSpec) -> ScoreAll:
    """Build scoring of one sample at a time: full logits, softmax, and a loop over the trained tokens."""
    network = _load(model)

    def score(samples: Sequence[Sample]) -> list[TokenScores]:
        with torch.inference_mode():
            return [_by_loop(network, sample) for sample in samples]

    return score


def _by_loop(network: Any, sample: Sample) -> TokenScores:
    ids = torch.as_tensor(sample.input_ids.astype(np.int64), device=network.device)  # (T,)
    logits = network(input_ids=ids[None], use_cache=False).logits[0]  # (T, V)
    probabilities = torch.softmax(logits.float(), dim=-1)
    nll, entropy = [], []
    for t in scored_positions(sample).tolist():
        p = probabilities[t - 1]
        log_p = p.clamp(min=TINIEST).log()
        nll.append(-log_p[ids[t]].item())
        entropy.append(-(p * log_p).sum().item())
    return TokenScores(np.array(nll, np.float32), np.array(entropy, np.float32))


def build_batched(model: ModelSpec) -> ScoreAll:
    """Build padded batches of samples of similar length: full logits, log-softmax, no loop over tokens."""
    network = _load(model)

    def score(samples: Sequence[Sample]) -> list[TokenScores]:
        scores: dict[int, TokenScores] = {}
        with torch.inference_mode():
            for batch in like_lengths([len(s.input_ids) for s in samples], BATCH_TOKENS):
                scores |= zip(batch, _by_batch(network, [samples[i] for i in batch]), strict=True)
        return [scores[i] for i in range(len(samples))]

    return score


def _by_batch(network: Any, samples: Sequence[Sample]) -> list[TokenScores]:
    longest = max(len(s.input_ids) for s in samples)
    ids = np.zeros((len(samples), longest), np.int64)  # (B, T), padded on the right
    is_token = np.zeros_like(ids)
    for i, sample in enumerate(samples):
        ids[i, : len(sample.input_ids)], is_token[i, : len(sample.input_ids)] = sample.input_ids, 1
    tokens, mask = (torch.from_numpy(a).to(network.device) for a in (ids, is_token))
    logits = network(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    log_p = torch.log_softmax(logits.float(), dim=-1)
    nll = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).cpu().numpy()  # (B, T - 1)
    entropy = -torch.linalg.vecdot(log_p.exp(), log_p).cpu().numpy()
    rows = [scored_positions(sample) - 1 for sample in samples]
    return [TokenScores(nll[i, row], entropy[i, row]) for i, row in enumerate(rows)]


def like_lengths(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return indices in batches, longest first, so that size x longest stays within `budget` tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _load(model: ModelSpec) -> Any:
    from transformers import AutoModelForCausalLM

    apply_environment()
    with quiet_libraries():
        network: Any = AutoModelForCausalLM.from_pretrained(model.name, dtype=getattr(torch, model.dtype))
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


# --- vLLM's own log-probabilities


def build_prompt_logprobs(model: ModelSpec) -> ScoreAll:
    """Run vLLM as a generator that returns the 20 likeliest tokens at each position of the prompt."""
    apply_environment()
    with quiet_libraries():
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform

        # As our engine has it: no compilation on a CPU, where it takes a minute and gains nothing.
        on_cpu = {"enforce_eager": True, "kv_cache_memory_bytes": EngineSpec().cpu_kv_cache_bytes}
        llm: Any = LLM(
            model=model.name,
            dtype=model.dtype,
            skip_tokenizer_init=True,
            max_logprobs=TOP_K,
            use_tqdm_on_load=False,
            **(on_cpu if current_platform.is_cpu() else {}),
        )
    vocab = llm.llm_engine.vllm_config.model_config.get_vocab_size()
    params = SamplingParams(max_tokens=1, prompt_logprobs=TOP_K, flat_logprobs=True, detokenize=False)

    def score(samples: Sequence[Sample]) -> list[TokenScores]:
        prompts = [{"prompt_token_ids": s.input_ids.tolist()} for s in samples]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [_from_top(s, o.prompt_logprobs.logprobs, vocab) for s, o in zip(samples, outputs, strict=True)]

    return score


def _from_top(sample: Sample, flat: Sequence[float], vocab: int) -> TokenScores:
    """Return scores from rows of log-probabilities, one a token from token 1 on: its own, then the TOP_K best."""
    rows = np.asarray(flat, np.float32).reshape(len(sample.input_ids) - 1, TOP_K + 1)[scored_positions(sample) - 1]
    return TokenScores(nll=-rows[:, 0], entropy=entropy_guess(rows[:, 1:], vocab))


def entropy_guess(top: NDArray[np.float32], vocab: int) -> NDArray[np.float32]:
    """Return the entropy (n,) in nats as if the mass outside the top log-probabilities (n, k) were spread evenly."""
    p = np.exp(top)
    rest = np.clip(1 - p.sum(1), TINIEST, 1)
    guess: NDArray[np.float32] = -(p * top).sum(1) - rest * np.log(rest / (vocab - top.shape[1]))
    return guess
