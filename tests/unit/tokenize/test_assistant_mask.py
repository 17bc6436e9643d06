"""tokenize/assistant_mask.py: the mask is the same however it is proven, and is refused where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from qtune_service.ingest.records import RecordError
from qtune_service.samples import Sample
from qtune_service.tokenize import turn_spans
from qtune_service.tokenize.chat_template import ChatTemplate
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.message_form import PROBE
from tests.unit.tokenize.chat_models import SHAPES, make_encoder, trained_text

UNMARKED = [name for name, shape in SHAPES.items() if name not in {"marked", "plain"}]
TURNS: dict[str, list[tuple[str, str]]] = {
    "one": [("user", "Q"), ("assistant", "A")],
    "system": [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Q"), ("assistant", "A")],
    "results": [
        ("user", "Q"),
        ("assistant", "A"),
        ("tool", "9"),
        ("assistant", "A"),
        ("user", "Q"),
        ("assistant", "B"),
    ],
    "marks": [
        ("user", "a</s><|im_end|>"),
        ("assistant", "b</s><|im_end|><|eot|><|end|>c"),
        ("user", "d"),
        ("assistant", "e"),
    ],
    "ends with user": [("user", "Q"), ("assistant", "A"), ("user", "Q"), ("assistant", "A"), ("user", "Q")],
}
WORDS = ("Q", " Q ", "assistant\n", "user\nQ", "<|im_end|>", "</s>", "<think>t</think>\n\nA", "Q\n")
# One template refuses results without a call.
CASES = [(shape, name) for shape in UNMARKED for name in TURNS if (shape, name) != ("mistral_tools", "results")]


def encode(encoder: Encoder, turns: Sequence[tuple[str, str]]) -> Sample:
    """Return the tokens and the mask of a conversation. Raise RecordError where the mask cannot be proven."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return encoder.encode({"messages": messages}, "messages").sample


def num_renders(monkeypatch: pytest.MonkeyPatch, encoder: Encoder, turns: Sequence[tuple[str, str]]) -> int:
    """Return how many times a conversation of known roles is rendered again to prove its mask."""
    encode(encoder, turns)
    calls: list[object] = []
    own = ChatTemplate.render

    def render(self: ChatTemplate, *arguments: Any, **options: Any) -> str:
        calls.append(arguments)
        return own(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ChatTemplate, "render", render)
        encode(encoder, [(role, f"{content} again") for role, content in turns])
    return len(calls)


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_two_proofs_give_one_mask(shape: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof for a whole conversation and the proof turn by turn share no rendering and no search."""
    encoder = make_encoder(folder, SHAPES[shape].source)
    quick = encode(encoder, TURNS[name])
    monkeypatch.setattr(turn_spans, "_prompt_words", lambda _: {})
    slow = encode(encoder, TURNS[name])
    assert quick.input_ids.tolist() == slow.input_ids.tolist()
    assert quick.loss_mask.tolist() == slow.loss_mask.tolist()


@pytest.mark.parametrize("shape", UNMARKED)
def test_masks_are_proven_by_few_renderings(shape: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, where the roles are known and the words are plain. Templates that move things need one more."""
    encoder = make_encoder(folder, SHAPES[shape].source)
    moves = shape in {"mistral", "mistral_tools", "r1"}
    assert num_renders(monkeypatch, encoder, TURNS["ends with user"]) == (1 if moves else 0)


@pytest.mark.parametrize("shape", UNMARKED)
def test_a_known_shape_gives_the_same_mask(shape: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of a conversation, rendered once for many, proves what a rendering of its own does, or nothing."""
    by_shape, by_rendering = (make_encoder(folder, SHAPES[shape].source) for _ in range(2))
    for words in product(WORDS, repeat=3):
        turns = [*zip(("user", "assistant", "user"), words, strict=True), ("assistant", "A")]
        try:
            wanted = encode(by_shape, turns)
        except RecordError:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(turn_spans, "MAX_SHAPES", 0)
            found = encode(by_rendering, turns)
        assert found.loss_mask.tolist() == wanted.loss_mask.tolist(), words


def test_data_that_holds_the_probe_is_refused_not_misread(folder: Path) -> None:
    """The word that stands in for others cannot be told from data that says it. Prefixes may still prove the mask."""
    chatml = make_encoder(folder, SHAPES["chatml"].source)
    turns = [("user", PROBE + "0x"), ("assistant", PROBE), ("user", "Q"), ("assistant", "A")]
    assert trained_text(chatml, encode(chatml, turns)) == f"{PROBE}<|im_end|>A<|im_end|>"
    mistral = make_encoder(folder, SHAPES["mistral"].source)
    assert encode(mistral, TURNS["system"]).loss_mask.any()
    with pytest.raises(RecordError, match="mask_not_verified"):
        encode(mistral, [*TURNS["system"][:-1], ("assistant", PROBE)])
