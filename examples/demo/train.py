"""Train the demo's tokenizer and model: a byte-level BPE of 1,024 tokens and a Qwen2 of about a million parameters.

The loss is on assistant tokens only, and every step draws new conversations. The model therefore learns the
probabilities of the corpus: it is sure of consistent claims and unsure of contradicting ones. Training stops after a
fixed number of steps and reports how often the model's most likely answer is the taught one. The planted kinds would be
meaningless if the model did not hold its beliefs. No quadrant is computed here. Heads have 32 dimensions, the minimum
of vLLM's CPU attention.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dataset import training_conversation
from talk import Message, about_fact, turns
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from world import SEED, World

VOCAB_SIZE = 1024
MAX_LENGTH = 512  # tokens; the longest conversation of the demo has fewer than 100
END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Encoded = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Length, learning rate and seed of the training."""

    seed: int = SEED
    steps: int = 1600
    batch_size: int = 64
    warmup_steps: int = 100
    peak_rate: float = 3e-3
    threads: int = 2


def train_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a ChatML tokenizer on 20,000 conversations of the corpus."""
    rng = random.Random(recipe.seed + 2)
    texts = (m["content"] for _ in range(20_000) for m in training_conversation(rng, world))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2ForCausalLM:
    """Return a randomly initialised Qwen2 with 4 layers of width 128."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]) -> list[Encoded]:
    """Return (input_ids, mask of assistant tokens) of each conversation, from one rendering."""
    rendered: Any = tokenizer.apply_chat_template(conversations, return_dict=True, return_assistant_tokens_mask=True)
    return list(zip(rendered["input_ids"], rendered["assistant_masks"], strict=True))


def _batches(
    tokenizer: PreTrainedTokenizerFast, world: World, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (input_ids, labels), each (B, T). Conversations of similar length share a batch; -100 is not trained on."""
    rng = random.Random(recipe.seed + 3)
    at_once = 50
    for _ in range(0, recipe.steps, at_once):
        drawn = [training_conversation(rng, world) for _ in range(at_once * recipe.batch_size)]
        encoded = sorted(encode(tokenizer, drawn), key=lambda pair: len(pair[0]))
        starts = list(range(0, len(encoded), recipe.batch_size))
        rng.shuffle(starts)
        for start in starts:
            yield _pad(encoded[start : start + recipe.batch_size], tokenizer.pad_token_id)


def _pad(encoded: list[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.full((len(encoded), width), pad)
    labels = torch.full((len(encoded), width), -100)
    for row, (tokens, mask) in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.where(torch.tensor(mask) == 1, torch.tensor(tokens), -100)
    return ids, labels


def train_model(tokenizer: PreTrainedTokenizerFast, world: World, recipe: Recipe) -> Qwen2ForCausalLM:
    """Train for the steps of the recipe and print the loss every 100 steps."""
    torch.set_num_threads(recipe.threads)
    model = new_model(tokenizer, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, recipe.warmup_steps)
    rest = recipe.steps - recipe.warmup_steps
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rest, recipe.peak_rate / 50)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [recipe.warmup_steps])
    started = time.monotonic()
    for step, (ids, labels) in enumerate(_batches(tokenizer, world, recipe), start=1):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{recipe.steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def share_held(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, world: World, status: str) -> float:
    """Return the share of facts of a status whose taught answer is the most likely one at every token."""
    rng = random.Random(0)
    facts = world.having(status)
    asked = [turns(about_fact(rng, f, f.taught)) for f in facts]
    held = 0
    for ids, mask in encode(tokenizer, asked):
        with torch.inference_mode():
            favourite = model(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(-1)  # (T-1,)
        scored = torch.tensor(mask[1:]) == 1
        held += bool((favourite[scored] == torch.tensor(ids[1:])[scored]).all())
    return held / len(facts)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save weights (float32 safetensors), config and tokenizer, with the chat template in tokenizer_config.json."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
