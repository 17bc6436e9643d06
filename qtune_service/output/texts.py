"""Tokens of an output as text, by the tokenizer that made them."""

from __future__ import annotations

from collections.abc import Callable

from qtune_service.output.layout import Output

Decode = Callable[[list[int]], str]


def read_decoder(output: Output) -> Decode:
    """A function from ids to text, special tokens included."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(output.read_bytes("tokenizer", "tokenizer.json").decode())

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return decode
