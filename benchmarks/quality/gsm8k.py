"""School mathematics in words (GSM8K), for a small Llama that has read children's stories.

The planted noise is answers that belong to other questions. There is no exact match: no model of this size solves such
questions, so NLL and calibration are all that can be measured. Needs ../shared beside the checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.spec import RunSpec
from benchmarks.quality.tasks import IGNORED, KINDS, Examples, Task

SHARED = Path(__file__).resolve().parents[3] / "shared"
LONGEST, NUM_TEST = 256, 100  # tokens, rows
END = 2


def small_llama(shared: Path = SHARED) -> Any:
    """260,000 parameters, trained on children's stories."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(shared / "models" / "stories260K")


def gsm8k(spec: RunSpec, shared: Path = SHARED) -> Task:
    """Rows of at most LONGEST tokens; where a swapped answer makes one longer, it ends there."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(shared / "models" / "stories260K" / "tokenizer.json"))
    train, test = (_texts(shared / "data" / f"gsm8k_{part}.jsonl", tokenizer) for part in ("train", "test"))
    answers, is_noise = _swapped([answer for _, answer in train], spec)
    rows = [_row(tokenizer, question, answer) for (question, _), answer in zip(train, answers, strict=True)]
    kinds = np.where(is_noise, KINDS.index("noise"), KINDS.index("normal"))
    return Task(_padded(rows), kinds, {"normal": _padded([_row(tokenizer, *each) for each in test[:NUM_TEST]])})


def _texts(path: Path, tokenizer: Any) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        texts = [(row["question"], row["answer"]) for row in map(json.loads, lines)]
    encoded = tokenizer.encode_batch([f"Question: {question}\nAnswer: {answer}" for question, answer in texts])
    return [text for text, found in zip(texts, encoded, strict=True) if len(found.ids) < LONGEST]


def _swapped(answers: list[str], spec: RunSpec) -> tuple[list[str], NDArray[np.bool_]]:
    """Answers, of which a share goes round among their questions."""
    random = np.random.default_rng(spec.seed)
    chosen = random.permutation(len(answers))[: round(spec.noise_rate * len(answers))]
    mixed, is_noise = list(answers), np.zeros(len(answers), np.bool_)
    for place, other in zip(chosen, np.roll(chosen, 1), strict=True):
        mixed[place], is_noise[place] = answers[other], True
    return mixed, is_noise


def _row(tokenizer: Any, question: str, answer: str) -> tuple[list[int], int]:
    """Ids, and how many of them are the prompt."""
    prompt = tokenizer.encode(f"Question: {question}\nAnswer:").ids
    ids = [*prompt, *tokenizer.encode(f" {answer}", add_special_tokens=False).ids, END]
    return ids[:LONGEST], len(prompt)


def _padded(rows: list[tuple[list[int], int]]) -> Examples:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows])
    sizes, prompts = (torch.tensor(column)[:, None] for column in zip(*((len(r), p) for r, p in rows), strict=True))
    real, at = torch.arange(width) < sizes, torch.arange(width)
    return Examples(ids, ids.masked_fill(~real | (at < prompts), IGNORED), real)
