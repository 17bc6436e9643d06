"""tokenize/encoder.py: what is trained, for templates of many shapes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.errors import ModelError, SpecError
from qtune_service.ingest.records import RecordError
from qtune_service.tokenize.encoder import Encoder
from tests.unit.tokenize.chat_models import (
    QWEN3,
    SHAPES,
    Encoders,
    expected_text,
    make_encoder,
    reasoning_record,
    trained_text,
)


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


CONVERSATIONS = {
    "one turn": turns("What is 6 x 7?", "It is 42."),
    "three turns": turns("a", "b", "c", "d", "a", "b"),
    "same words everywhere": turns("yes", "yes", "yes", "yes", system="yes"),
    "system": turns("Hi", "Hello there!", "Bye", "See you.", system="Be brief."),
    "multi-byte": turns("Grüße, 世界", "你好,мир 😀👩‍👩‍👧", "🇩🇪?", "naïve café ﬁ"),
    "right to left": turns("שלום", "مرحبا بالعالم", "שוב", "\u200fאבגד\u200e"),
    "empty question": turns("", "An answer.", "  ", "Another."),
    "words of the template": turns("assistant\n", "user\nassistant\n", "<think>", "The end"),
    "special tokens as text": turns("<|im_end|>[/INST]</s>", "a<|im_end|>b<|eot|></s>c<|end|>d<|endoftext|>", "x", "y"),
    "end of turn in the system prompt": turns("Q", "A", "Q2", "A2", system="</s><|im_end|><|eot|> is the end"),
    "trailing space": turns("Q", "An answer with space. \n\n", "Q2", "More. "),
    "ends with the user": turns("Q", "A", "Thanks!"),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_trains_exactly_the_assistant_turns(shape: str, name: str, encoders: Encoders) -> None:
    """Every assistant turn with its end-of-turn token, and nothing else, for every template."""
    messages = CONVERSATIONS[name]
    encoded = encoders[shape].encode({"messages": messages}, "messages")
    assert trained_text(encoders[shape], encoded.sample) == expected_text(SHAPES[shape], messages)


PIECES = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "[INST]",
        " [/INST] ",
        "</s>",
        "<|eot|>",
        "\n\n",
        "<|end|>",
        "assistant",
        "  ",
    ]
)
TEXT = st.lists(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), PIECES), max_size=4).map(
    "".join
)
ANSWER = TEXT.map(lambda text: f"A{text}Z")  # white space at the border has its own test


def swallowed(text: str) -> str:
    """Return the text without the white space that Phi's markers swallow wherever they stand."""
    return re.sub(r"(<\|(?:end|user|assistant|system)\|>)\s+", r"\1", text)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Alternating turns, perhaps a system turn and training flags."""
    rounds = draw(st.lists(st.tuples(TEXT, ANSWER, st.sampled_from([None, True, False])), min_size=1, max_size=4))
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": "S" + draw(TEXT)})
    for question, answer, flag in rounds:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer} | ({} if flag is None else {"loss": flag}))
    return messages


@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_any_conversation_trains_exactly_its_flagged_turns(messages: list[dict[str, Any]], encoders: Encoders) -> None:
    """Random words, template words included, do not move the mask of any template."""
    flags = [m["role"] == "assistant" and m.get("loss", True) for m in messages]
    for name, shape in SHAPES.items():
        if not any(flags):
            with pytest.raises(RecordError, match="no_trained_turn"):
                encoders[name].encode({"messages": messages}, "messages")
            continue
        sample = encoders[name].encode({"messages": messages}, "messages").sample
        assert swallowed(trained_text(encoders[name], sample)) == swallowed(expected_text(shape, messages, flags)), name


@pytest.mark.parametrize("shape", SHAPES)
def test_input_ids_are_those_of_the_whole_text(shape: str, encoders: Encoders) -> None:
    """Tokens are what transformers itself makes of the conversation, and the first is never trained."""
    messages = CONVERSATIONS["special tokens as text"]
    encoder = encoders[shape]
    sample = encoder.encode({"messages": messages}, "messages").sample
    tokenizer = encoder._tokenizer
    pinned = {"strftime_now": lambda _: "26 Jul 2024"}
    assert sample.input_ids.tolist() == tokenizer.apply_chat_template(messages, **pinned)["input_ids"]
    assert (sample.input_ids.dtype.name, sample.loss_mask.dtype.name) == ("int32", "int8")
    assert sample.loss_mask[0] == 0


@pytest.mark.parametrize("shape", ["chatml", "chatml_default_system", "marked", "llama3", "qwen3", "phi3", "plain"])
def test_conversation_that_the_assistant_opens(shape: str, encoders: Encoders) -> None:
    """There is no prompt to render before the first turn; its start is still found."""
    messages = [{"role": "assistant", "content": "Welcome!"}, *turns("Hi", "Hello.")]
    sample = encoders[shape].encode({"messages": messages}, "messages").sample
    assert trained_text(encoders[shape], sample) == expected_text(SHAPES[shape], messages)


def test_markers_with_untrained_turns_and_two_spans_a_turn(folder: Path) -> None:
    """Flags hold where a template marks a turn in two pieces."""
    template = SHAPES["marked"].source or ""
    template = template.replace(
        "{{ m.content +", "{{ m.content[:1] }}{% endgeneration %}{% generation %}{{ m.content[1:] +"
    )
    encoder = make_encoder(folder, template)
    messages: list[dict[str, Any]] = [*turns("a", "first", "b", "second")]
    messages[1]["train"] = False
    sample = encoder.encode({"messages": messages}, "messages").sample
    assert trained_text(encoder, sample) == "second<|im_end|>"


def test_markers_that_miss_the_words_are_refused(folder: Path) -> None:
    """Inside a macro the marked offsets are wrong; that is noticed."""
    template = (
        "{% macro say(m) %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}{{ 'long header' + say(m) }}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(RecordError, match="mask_not_verified"):
        make_encoder(folder, template).encode({"messages": turns("a", "an answer")}, "messages")


def test_template_whose_prompt_depends_on_the_answer_is_refused(folder: Path) -> None:
    """A mask that cannot be proven is never guessed; the way out is named."""
    template = (
        "{{ messages | length }}:{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{{ messages[-1].content | length }}"
    )
    with pytest.raises(RecordError, match=r"mask_not_verified.*generation"):
        make_encoder(folder, template).encode({"messages": turns("a", "b", "c", "d")}, "messages")


def test_template_that_drops_a_turn_is_refused(folder: Path) -> None:
    """Context never vanishes without a word."""
    template = "{% for m in messages %}{% if loop.index0 != 0 %}{{ m.role + m.content + '\n' }}{% endif %}{% endfor %}"
    with pytest.raises(RecordError, match=r"context_dropped.*turn 1 \(user\)"):
        make_encoder(folder, template).encode({"messages": turns("Question", "Answer")}, "messages")


def test_token_that_begins_in_the_prompt_is_not_trained(folder: Path) -> None:
    """White space that merges across the border belongs to the prompt."""
    encoder = make_encoder(folder, SHAPES["chatml"].source)
    sample = encoder.encode({"messages": turns("Q", "\n\nAnswer")}, "messages").sample
    text = encoder.decode(sample.input_ids.tolist())
    assert text.endswith("<|im_start|>assistant\n\n\nAnswer<|im_end|>\n")
    words = [encoder.decode([i]) for i in sample.input_ids.tolist()]
    header = "".join(words).index("assistant\n") + len("assistant\n")
    begins = np.cumsum([0, *map(len, words)])[:-1]
    ends = begins + [len(word) for word in words]
    inside = (begins >= header) & (ends <= len(text) - 1)
    assert sample.loss_mask.tolist() == inside.astype(int).tolist()
    assert (begins < header)[ends > header].any(), "the case needs a token across the border"


def test_too_long_is_rejected_or_cut_as_asked(folder: Path) -> None:
    """At the limit a sample is whole; over it, it is refused or the head is kept and that is told."""
    record = {"messages": turns("Question", "A long answer " * 5)}
    whole = make_encoder(folder, None).encode(record, "messages").sample
    size = len(whole.input_ids)
    exact = make_encoder(folder, None, max_model_len=size).encode(record, "messages")
    assert not exact.truncated
    assert len(exact.sample.input_ids) == size
    with pytest.raises(RecordError, match=f"too_long: {size} tokens; the limit is {size - 1}"):
        make_encoder(folder, None, max_model_len=size - 1).encode(record, "messages")
    cut = make_encoder(folder, None, max_model_len=size - 1, overlong="truncate").encode(record, "messages")
    assert cut.truncated
    assert cut.sample.input_ids.tolist() == whole.input_ids[:-1].tolist()
    assert cut.sample.loss_mask.tolist() == whole.loss_mask[:-1].tolist()
    with pytest.raises(RecordError, match="no_trained_tokens"):
        make_encoder(folder, None, max_model_len=2, overlong="truncate").encode(record, "messages")


def test_batch_keeps_order_and_isolates_bad_records(encoders: Encoders) -> None:
    """One outcome a record, at its place; a broken one does not touch the others."""
    good, half = {"messages": turns("Q", "A")}, {"messages": turns("Q", "broken \ud83d")}
    tokens = {"input_ids": [5, 6, 7], "loss_mask": [1, 0, 1]}
    outcomes = encoders["chatml"].encode_batch([good, half, {}, good], "messages")
    codes = [o.reason_code if isinstance(o, RecordError) else None for o in outcomes]
    assert codes == [None, "not_unicode", "missing_field", None]
    encoded = encoders["chatml"].encode(tokens, "tokenized")
    assert (encoded.sample.input_ids.tolist(), encoded.sample.loss_mask.tolist()) == ([5, 6, 7], [0, 0, 1])
    assert encoders["chatml"].encode_batch([], "messages") == []


def test_tokens_outside_the_models_vocabulary_are_refused(folder: Path) -> None:
    """A tokenizer larger than the model's head would index past it."""
    spec, model = InputSpec(paths=("x",)), ModelSpec(name=str(folder))
    encoder = Encoder(model, spec, max_model_len=100, vocab_size=300)
    with pytest.raises(RecordError, match=r"token_out_of_vocab.*300"):
        encoder.encode({"input_ids": [1, 2, 300], "loss_mask": [0, 1, 1]}, "tokenized")
    assert encoder.encode({"input_ids": [1, 2, 299], "loss_mask": [0, 1, 1]}, "tokenized").sample.input_ids[2] == 299


@pytest.mark.parametrize("use", ["text", "path"])
def test_template_given_as_text_or_path(use: str, folder: Path, tmp_path: Path) -> None:
    """A template of the user's own replaces the tokenizer's, and is saved with it."""
    path = tmp_path / "template.jinja"
    path.write_text(QWEN3, encoding="utf-8")
    encoder = make_encoder(folder, QWEN3 if use == "text" else str(path))
    encoder.save_tokenizer(tmp_path / "saved")
    again = make_encoder(tmp_path / "saved", None)
    assert again.template_description == "tokenizer's own template; mask verified by rendering"
    assert encoder.template_description == "template given by the job; mask verified by rendering"
    record = reasoning_record()
    ids = [e.encode(record, "messages").sample.input_ids.tolist() for e in (encoder, again)]
    assert ids[0] == ids[1]
    assert encoder.fingerprint != make_encoder(folder, None).fingerprint


def test_long_conversation_takes_little_time(encoders: Encoders) -> None:
    """Verification renders prefixes, so its cost is watched: 400 turns in well under the time of scoring them."""
    messages = turns(*(f"Turn number {i} of a long talk." for i in range(400)))
    for name in ("chatml", "qwen3", "marked", "plain"):
        began = time.process_time()
        sample = encoders[name].encode({"messages": messages}, "messages").sample
        assert time.process_time() - began < 5
        assert trained_text(encoders[name], sample) == expected_text(SHAPES[name], messages)


def test_descriptions_say_what_is_folded(encoders: Encoders) -> None:
    """The manifest can say how a template's gaps are filled."""
    described = {name: encoder.template_description for name, encoder in encoders.items()}
    assert described["marked"].startswith("template given by the job; generation markers; tools in the system prompt")
    assert described["plain"].startswith("plain template, the tokenizer has none; generation markers")
    assert "tool results as user turns" in described["mistral"]


BAD_MODELS: dict[str, Callable[[Path], Any]] = {
    "no model at": lambda tmp: ModelSpec(name=str(tmp / "absent")),
    "cannot load the tokenizer": lambda tmp: ModelSpec(name=str(tmp)),
}


@pytest.mark.parametrize("message", BAD_MODELS)
def test_missing_tokenizer_is_one_clear_error(message: str, tmp_path: Path) -> None:
    """The error names the model and what to do."""
    with pytest.raises(ModelError, match=message) as caught:
        Encoder(BAD_MODELS[message](tmp_path), InputSpec(paths=("x",)), max_model_len=10)
    assert str(tmp_path) in caught.value.message
    assert "tokenizer" in caught.value.hint


def test_broken_templates_are_found_at_start(folder: Path, tmp_path: Path) -> None:
    """Bad syntax and a missing file end the job before it reads data."""
    with pytest.raises(ModelError, match="not valid Jinja, line 1"):
        make_encoder(folder, "{% for m in messages %}")
    with pytest.raises(SpecError, match="cannot read the chat template"):
        make_encoder(folder, str(tmp_path / "none.jinja"))
