"""tokenize/encoded_batch.py: offsets that follow from bytes are those that the tokenizer itself gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qtune_service.tokenize.encoded_batch import MAX_MISSES, TokenLocator

TEXTS = [
    "",
    "<|im_start|>user\nHello, world!<|im_end|>\n",
    "a  b\t\u00e9\u6f22\u5b57 \U0001f600\U0001f468\u200d\U0001f469",
    "<|im_end|> <|im_end|>",
    "\x00\x7f",
]


def byte_level(*, prefix_space: bool = False, rstrip: bool = False, normalizer: Any = None) -> Tokenizer:
    """Return a byte-level BPE over a few words, with two special tokens."""
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


class Asked:
    """A tokenizer that counts its calls for ids and for offsets."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.for_ids = self.for_offsets = 0

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        """Return ids."""
        self.for_ids += 1
        return self._tokenizer.encode_batch_fast(texts, **options)

    def encode_batch(self, texts: Sequence[str], **options: Any) -> Any:
        """Return ids and offsets."""
        self.for_offsets += 1
        return self._tokenizer.encode_batch(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def check(tokenizer: Tokenizer, texts: Sequence[str], locator: TokenLocator | None = None) -> None:
    """Compare ids and offsets with the tokenizer's own, text by text."""
    located = (locator or TokenLocator(tokenizer)).locate(texts)
    for i, text in enumerate(texts):
        span = slice(located.offsets[i], located.offsets[i + 1])
        wanted = tokenizer.encode(text, add_special_tokens=False)
        assert located.ids[span].tolist() == wanted.ids
        assert list(zip(located.begins[span].tolist(), located.ends[span].tolist(), strict=True)) == wanted.offsets


@pytest.mark.parametrize("options", [{}, {"prefix_space": True}, {"rstrip": True}, {"normalizer": normalizers.NFC()}])
def test_places_are_the_tokenizers_own(options: dict[str, Any]) -> None:
    """Also where bytes prove nothing: a space put in front, one swallowed, characters changed."""
    check(byte_level(**options), [*TEXTS, "e\u0301 <|im_end|> x"])


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6))
def test_places_of_any_text(texts: list[str]) -> None:
    """Whatever characters there are, the offsets of a byte-level tokenizer follow from its bytes: it is not asked."""
    asked = Asked(TOKENIZER)
    check(TOKENIZER, texts, TokenLocator(asked))
    assert texts == [] or asked.for_offsets == 0


def test_a_tokenizer_of_words_is_asked() -> None:
    """A vocabulary of whole words spells no bytes, so its offsets are used."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    asked = Asked(words)
    check(words, ["a b", "b  c"], TokenLocator(asked))
    assert asked.for_offsets == 1


def test_proof_is_not_sought_for_ever() -> None:
    """Where the bytes never spell the text, tokenising everything twice ends after a few groups."""
    asked = Asked(byte_level(rstrip=True))
    locator = TokenLocator(asked)
    asked.for_ids = 0  # what the locator learned at its start
    for _ in range(MAX_MISSES + 3):
        assert np.array_equal(locator.locate(["<|im_end|>  x"]).ends[:1], [12])
    assert (asked.for_ids, asked.for_offsets) == (MAX_MISSES + 1, MAX_MISSES + 3)


TOKENIZER = byte_level()
