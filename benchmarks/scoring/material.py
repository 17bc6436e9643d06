"""Make the inputs of all routes: random-weight models, a tokenizer, chat records and their tokens.

Speed depends on shapes and lengths, not on what the weights know, so the models are random. The tokenizer is a small
BPE trained on the records' own invented language, with a chat template that marks the answers; nearly every word is
one token. Lengths are log-normal, as in chat data, and no two prompts are alike, so prefix caching has nothing to win.
Models are made once, into a folder that becomes visible by a rename.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.samples import Sample
from qtune_service.scoring.process_environment import quiet_libraries
from qtune_service.tokenize.encoder import Encoded, Encoder

MAX_MODEL_LEN = 4096
TOKENIZER_SIZE = 8192
NUM_WORDS = 6000
TRAINED_SHARE = 0.6
MEDIAN_WORDS, SPREAD, MIN_WORDS, MAX_WORDS = 340, 0.6, 48, 1024
LOGIT_SPREAD = 1.5  # standard deviation of the logits; the usual weights give less, and misplaced scores would not show
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen2 model by its sizes; embedding and output head share their weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


SHAPES = {
    "tiny": Shape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=768, vocab=8192),
    "0.5b": Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocab=151_936),  # Qwen2.5-0.5B's
}


# --- models


def make_model(shape: Shape, folder: Path) -> Path:
    """Write a random model in bfloat16 with its tokenizer, unless it is there; returns the folder."""
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_weights(shape, unfinished)
    make_tokenizer().save_pretrained(str(unfinished))
    unfinished.rename(folder)
    return folder


def _write_weights(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=True,
        initializer_range=LOGIT_SPREAD / shape.hidden**0.5,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # 7B takes minutes of a CPU
        network: Any = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)  # noqa: SLF001 - the way to a dtype
    with quiet_libraries():
        network.save_pretrained(folder)


def make_tokenizer() -> Any:
    """Train the BPE; its special tokens come first, all ids are below TOKENIZER_SIZE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((m["content"] for r in make_records(400, seed=1) for m in r["messages"]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_MODEL_LEN,
    )


# --- records and samples


def make_records(num_records: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield chats of one question and one answer, which is TRAINED_SHARE of the words."""
    words = invented_words()
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(10, NUM_WORDS + 10)  # Zipf's law, its head cut
    odds /= odds.sum()
    for i in range(num_records):
        count = int(np.clip(rng.lognormal(np.log(MEDIAN_WORDS), SPREAD), MIN_WORDS, MAX_WORDS))
        text = words[rng.choice(NUM_WORDS, count, p=odds)].tolist()
        cut = round(count * (1 - TRAINED_SHARE))
        turns = (("user", text[:cut]), ("assistant", text[cut:]))
        yield {"id": i, "messages": [{"role": role, "content": " ".join(part)} for role, part in turns]}


def invented_words() -> NDArray[np.str_]:
    """Return invented words (NUM_WORDS,) of one to four syllables, the same on every call."""
    rng = np.random.default_rng(7)
    syllables = [a + b for a in "bdfghjklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]
    made: dict[str, None] = {}
    while len(made) < NUM_WORDS:
        made["".join(rng.choice(syllables, rng.integers(1, 5)))] = None
    return np.array(list(made))


def write_records(path: Path, num_records: int) -> None:
    """Write records as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in make_records(num_records))


def encode(data: Path, model: Path, shape: Shape) -> list[Sample]:
    """Tokenise the records as `qtune` does."""
    spec = InputSpec(paths=(str(data),))
    encoder = Encoder(ModelSpec(name=str(model)), spec, max_model_len=MAX_MODEL_LEN, vocab_size=shape.vocab)
    with data.open(encoding="utf-8") as lines:
        outcomes = encoder.encode_batch([json.loads(line) for line in lines], "messages")
    samples = [outcome.sample for outcome in outcomes if isinstance(outcome, Encoded)]
    if len(samples) != len(outcomes):
        raise RuntimeError(f"{len(outcomes) - len(samples)} of {len(outcomes)} made records cannot be encoded")
    return samples


def save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples as flat arrays with offsets."""
    np.savez(
        path,
        input_ids=np.concatenate([s.input_ids for s in samples]),
        loss_mask=np.concatenate([s.loss_mask for s in samples]),
        ends=np.cumsum([len(s.input_ids) for s in samples]),
    )


def load_samples(path: Path) -> list[Sample]:
    """Read what `save_samples` wrote."""
    with np.load(path) as arrays:
        ends = arrays["ends"][:-1]
        parts = (np.split(arrays[name], ends) for name in ("input_ids", "loss_mask"))
        return [Sample(ids, mask) for ids, mask in zip(*parts, strict=True)]
