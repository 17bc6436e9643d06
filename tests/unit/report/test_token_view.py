"""Tests of tokens as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qtune_service.report.token_view import token_texts, visible_text


class ByteTokens:
    """A byte-level tokenizer's decoder: token i stands for pieces[i]. Counts the tokens it decodes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.decoded_tokens = 0

    def __call__(self, ids: list[int]) -> str:
        """Broken bytes become U+FFFD, as in every tokenizer."""
        self.decoded_tokens += len(ids)
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def _texts(pieces: list[bytes]) -> list[str]:
    return token_texts(ByteTokens(pieces), range(len(pieces)))


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=60))
def test_joined_texts_are_the_sample_however_its_bytes_are_cut(text: str, sizes: list[int]) -> None:
    """One text a token, and nothing lost, doubled or garbled."""
    body = text.encode("utf-8", errors="ignore")
    pieces: list[bytes] = []
    for size in sizes:
        pieces, body = [*pieces, body[:size]], body[size:]
    pieces = [piece for piece in [*pieces, body] if piece]
    texts = _texts(pieces)
    assert len(texts) == len(pieces)
    assert "".join(texts) == b"".join(pieces).decode()


def test_the_first_token_of_a_character_shows_it() -> None:
    """The others show nothing; neighbours keep their own text."""
    assert _texts([b"a", b"\xf0\x9f", b"\x99", b"\x82", b" b"]) == ["a", "🙂", "", "", " b"]
    assert _texts([b" x\xe4", b"\xbd\xa0y"]) == [" x你y", ""]


def test_bytes_that_are_no_text_stay_with_their_token() -> None:
    """They do not swallow the tokens after them, even where these are broken characters themselves."""
    bad = "\N{REPLACEMENT CHARACTER}"
    assert _texts([b"\xff", b"a"]) == [bad, "a"]
    assert _texts([b"\xff", b"\xe4", b"\xbd", b"\xa0", b"a"]) == [bad, "你", "", "", "a"]
    assert _texts([b"ok", b"\xe4"]) == ["ok", bad]
    assert _texts([bad.encode()] * 6 + [b"a"]) == [bad] * 6 + ["a"]


def test_a_leading_space_survives_a_decoder_that_strips_it() -> None:
    """SentencePiece decoders drop the space at the start of a text, whichever token it starts with."""
    words = ["▁Six", "▁boxes", "▁of", "▁pens"]
    texts = token_texts(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" "), range(4))
    assert texts == ["Six", " boxes", " of", " pens"]


def test_time_is_linear_also_in_broken_data() -> None:
    """Each token is decoded a bounded number of times, however long the sample is."""
    for piece in (b"word ", b"\xff", "\N{REPLACEMENT CHARACTER}".encode()):
        decoder = ByteTokens([piece])
        token_texts(decoder, [0] * 5_000)
        assert decoder.decoded_tokens <= 40 * 5_000


def test_what_cannot_be_seen_gets_a_sign() -> None:
    """Controls and marks that reorder text are written out; line ends, tabs and joiners stay."""
    assert visible_text("a\x00\x1b\r\u202eb\n\t") == "a␀␛␍⟨U+202E⟩b\n\t"
    assert visible_text("👩\u200d🔬 مرحبا\u200f") == "👩\u200d🔬 مرحبا\u200f"
