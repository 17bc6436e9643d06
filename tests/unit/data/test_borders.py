"""tokenize/assistant_mask.py: the two ways of proving where a turn lies agree."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from qtune_service.ingest.formats import to_conversation
from qtune_service.ingest.records import Conversation, RecordError
from qtune_service.tokenize import assistant_mask
from qtune_service.tokenize.chat_template import PROBE
from tests.unit.data.chat_models import SHAPES, make_encoder, save_tokenizer

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without a template."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rendering_of(folder: Path, shape: str, turns: list[tuple[str, str]]) -> assistant_mask.Rendering:
    """The one text of a conversation."""
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
    conversation = to_conversation({"messages": messages}, "messages")
    assert isinstance(conversation, Conversation)
    return make_encoder(folder, SHAPES[shape].source)._render(conversation)


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_skeleton_and_rules_find_the_same_turns(shape: str, name: str, folder: Path) -> None:
    """The fast way and the slow way share no rendering and no search, but the answer."""
    rendering = rendering_of(folder, shape, TURNS[name])
    template = rendering.template
    turns = [i for i, m in enumerate(rendering.conversation.messages) if m["role"] == "assistant"]
    by_rules = [assistant_mask._by_rules(rendering, i) for i in turns]
    ends = [rendering.text.find(template.end_of_turn, start) for start, _ in by_rules]
    words = assistant_mask._prompt_words(rendering)
    for i, rule, at in zip(turns, by_rules, ends, strict=True):
        quick = assistant_mask._by_skeleton(rendering, i, words)
        if quick is None:
            assert shape in {"mistral", "mistral_tools"}, "only templates that move things need the rules"
            continue
        assert quick[0] == rule[0]
        assert at < quick[1] <= rule[1]
        assert template.is_template_only(rendering.text[quick[1] : rule[1]])


@pytest.mark.parametrize("shape", UNMARKED)
def test_shape_and_rendering_find_the_same_words(shape: str, folder: Path) -> None:
    """The shape of a conversation, rendered once for many, tells what a rendering of its own does, or nothing."""
    encoder = make_encoder(folder, SHAPES[shape].source)
    found = 0
    for number, words in enumerate(product(WORDS, repeat=3)):
        turns = zip(("user", "assistant", "user"), words, strict=True)
        record = {"messages": [{"role": r, "content": c} for r, c in turns] + [{"role": "assistant", "content": "A"}]}
        conversation = to_conversation(record, "messages")
        assert isinstance(conversation, Conversation)
        try:
            rendering = encoder._render(conversation)
        except RecordError:
            continue
        by_shape = assistant_mask._words_by_shape(rendering)
        if by_shape:
            found += 1
            assert by_shape == assistant_mask._words_by_rendering(rendering), (number, words)
    assert found or shape in {"mistral", "mistral_tools", "r1"}, "they write no end-of-turn token behind a user's turn"


def test_every_rule_is_needed_by_some_template(folder: Path) -> None:
    """Prefixes fail where history is written anew; then other words prove the borders."""
    rendering = rendering_of(folder, "mistral", TURNS["system"])
    assert assistant_mask._start_by_prefix(rendering, 4) is not None
    assert assistant_mask._end_by_prefix(rendering, 2) is None
    assert assistant_mask._by_rules(rendering, 2) == (
        assistant_mask._start_after(rendering, 2),
        assistant_mask._end_by_probe(rendering, 2, 0),
    )
    opened = rendering_of(folder, "chatml_default_system", TURNS["one"])
    assert (
        assistant_mask._start_before(opened, 1)
        == assistant_mask._start_by_prefix(opened, 1)
        == assistant_mask._start_after(opened, 1)
    )


def test_data_that_holds_the_probe_is_refused_not_misread(folder: Path) -> None:
    """The word that stands in for others cannot be told from data that says it; prefixes still may."""
    turns = [("user", PROBE + "0x"), ("assistant", PROBE), ("user", "Q"), ("assistant", "A")]
    rendering = rendering_of(folder, "chatml", turns)
    assert assistant_mask._prompt_words(rendering) == {}
    spans = assistant_mask.locate_turns(rendering, [1, 3])
    assert [rendering.text[a:b] for a, b in spans] == [f"{PROBE}<|im_end|>\n", "A<|im_end|>\n"]
    assert assistant_mask.locate_turns(rendering_of(folder, "mistral", TURNS["system"]), [2])
    with pytest.raises(RecordError, match="mask_not_verified"):
        assistant_mask.locate_turns(rendering_of(folder, "mistral", [*TURNS["system"][:-1], ("assistant", PROBE)]), [2])
