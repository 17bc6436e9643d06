"""tokenize/token_offsets.py: places told by bytes are those that the tokenizer itself tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qtune_service.tokenize.token_offsets import MAX_MISSES, TokenLocator

TEXTS = [
    "",
    "<|im_start|>user\nHello, world!<|im_end|>\n",
    "a  b\t\u00e9\u6f22\u5b57 \U0001f600\U0001f468\u200d\U0001f469",
    "<|im_end|> <|im_end|>",
    "\x00\x7f",
]


def byte_level(*, prefix_space: bool = False, rstrip: bool = False, normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE over a few words, with two special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bpe.decoder = decoders.ByteLevel()
    if normalizer is not None:
        bpe.normalizer = normalizer
    special: list[Any] = [
        AddedToken("<|im_start|>", special=True),
        AddedToken("<|im_end|>", special=True, rstrip=rstrip),
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["Hello world, hello there"] * 3, trainer)
    return bpe


def check(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Compare ids and places with the tokenizer's own, text by text."""
    placed = TokenLocator(tokenizer).locate(texts)
    for i, text in enumerate(texts):
        span = slice(placed.offsets[i], placed.offsets[i + 1])
        wanted = tokenizer.encode(text, add_special_tokens=False)
        assert placed.ids[span].tolist() == wanted.ids
        assert list(zip(placed.begins[span].tolist(), placed.ends[span].tolist(), strict=True)) == wanted.offsets


@pytest.mark.parametrize("options", [{}, {"prefix_space": True}, {"rstrip": True}, {"normalizer": normalizers.NFC()}])
def test_places_are_the_tokenizers_own(options: dict[str, Any]) -> None:
    """Also where bytes prove nothing: a space put in front, one swallowed, characters changed."""
    check(byte_level(**options), [*TEXTS, "e\u0301 <|im_end|> x"])


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
def test_places_of_any_text(texts: list[str]) -> None:
    """Whatever characters there are, a byte-level tokenizer's places are told by its bytes."""
    placer = TokenLocator(TOKENIZER)
    assert texts == [] or placer._by_bytes(texts, placer._table) is not None  # type: ignore[arg-type]
    check(TOKENIZER, texts)


def test_a_tokenizer_of_words_is_asked() -> None:
    """A vocabulary of whole words spells no bytes, so its offsets are used."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert TokenLocator(words)._table is None
    check(words, ["a b", "b  c"])


def test_proof_is_not_sought_for_ever() -> None:
    """Where the bytes never spell the text, tokenising everything twice ends after a few groups."""
    placer = TokenLocator(byte_level(rstrip=True))
    for _ in range(MAX_MISSES + 1):
        assert placer._table is not None
        assert np.array_equal(placer.locate(["<|im_end|>  x"]).ends[:1], [12])
    assert placer._table is None


TOKENIZER = byte_level()
