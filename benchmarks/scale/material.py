"""Make inputs of any size, the same every time: short records, one huge file, lengths from 8 to 8,000 tokens.

Short records are half chats of two turns, half prompt/completion pairs, some 30 tokens each, in the invented language
of benchmarks.scoring. Every one is different, so caches that real data would not fill gain nothing. numpy makes them a
million words at a time. The huge file repeats one block of a hundred thousand different chats. The model is a
configuration with a tokenizer and no weights, since no engine here reads any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.scoring.material import NUM_WORDS, invented_words, make_tokenizer

BATCH = 50_000  # records made at once
CHAT_WORDS, PAIR_WORDS = (8, 9), (10, 10)
MAX_MODEL_LEN = 8192
LONGEST_WORDS = 5500  # some 8,000 tokens
MARKERS = ("{% generation %}", "{% endgeneration %}")


def make_model(folder: Path, *, has_markers: bool) -> Path:
    """Write a small Qwen2 configuration and a tokenizer whose template has generation markers or not."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    if not has_markers:
        for marker in MARKERS:
            tokenizer.chat_template = tokenizer.chat_template.replace(marker, "")
    tokenizer.model_max_length = MAX_MODEL_LEN
    tokenizer.save_pretrained(str(folder))
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 8192}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": MAX_MODEL_LEN}))
    return folder


def write_short(folder: Path, num_records: int) -> list[Path]:
    """Write chats and pairs, half of each, one file a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "chats.jsonl", folder / "pairs.jsonl"]
    for path, kind, count in zip(
        paths, (chats, pairs), (num_records - num_records // 2, num_records // 2), strict=True
    ):
        with path.open("w", encoding="utf-8") as file:
            file.writelines(kind(count))
    return paths


def chats(num_records: int) -> Iterator[str]:
    """Yield lines of two-turn conversations."""
    for number, (asked, told) in enumerate(_texts(num_records, *CHAT_WORDS, seed=1)):
        yield (
            f'{{"id": {number}, "messages": [{{"role": "user", "content": "{asked}?"}}, '
            f'{{"role": "assistant", "content": "{told}."}}]}}\n'
        )


def pairs(num_records: int) -> Iterator[str]:
    """Yield lines of a prompt and its completion."""
    for number, (asked, told) in enumerate(_texts(num_records, *PAIR_WORDS, seed=2)):
        yield f'{{"id": {number}, "prompt": "{asked}?", "completion": "{told}."}}\n'


def _texts(num_records: int, num_asked: int, num_told: int, *, seed: int) -> Iterator[tuple[str, str]]:
    words = invented_words()
    odds = np.cumsum(1 / np.arange(10, NUM_WORDS + 10))  # Zipf's law, its head cut
    rng = np.random.default_rng(seed)
    for begun in range(0, num_records, BATCH):
        count = min(BATCH, num_records - begun)
        drawn = np.searchsorted(odds, rng.random((count, num_asked + num_told)) * odds[-1])
        for row in words[drawn].tolist():
            yield " ".join(row[:num_asked]), " ".join(row[num_asked:])


def write_one(path: Path, num_bytes: int) -> None:
    """Write one JSONL file of at least so many bytes: a block of different chats, repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = "".join(chats(100_000)).encode()
    with path.open("wb") as file:
        for _ in range(-(-num_bytes // len(block))):
            file.write(block)


def write_mixed(path: Path, num_records: int) -> None:
    """Write chats of 8 to 8,000 tokens, even on a logarithmic scale. Every other word is the answer's."""
    words = invented_words()
    rng = np.random.default_rng(3)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            row = words[rng.integers(0, 2000, 2 + int(np.exp(rng.uniform(0, np.log(LONGEST_WORDS)))))].tolist()
            half = len(row) // 2
            turns = (("user", row[:half]), ("assistant", row[half:]))
            messages = [{"role": role, "content": " ".join(part)} for role, part in turns]
            file.write(json.dumps({"id": number, "messages": messages}) + "\n")
