"""tokenize/assistant_mask.py and turn_spans.py: ends of turns, stop tokens, ranges, headers, numbers of turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qtune_service.config import ModelSpec
from qtune_service.ingest.records import Conversation, Range, RecordError
from qtune_service.samples import Sample
from qtune_service.tokenize import turn_spans
from qtune_service.tokenize.assistant_mask import token_masks, trained_spans
from qtune_service.tokenize.encoded_batch import NO_ENDINGS, Endings
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.stop_tokens import stop_token_ids
from tests.unit.tokenize.chat_models import CHATML, MARKED, QWEN3, make_encoder

GPT_OSS = """\
{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|begin|>assistant' }}\
{% if m.tool_calls %}{{ ' to=' + m.tool_calls[0].function.name + '<|header|>' }}\
{{ m.tool_calls[0].function.arguments | tojson }}{{ '<|eom|>' }}\
{% elif loop.last and not add_generation_prompt %}{{ '<|header|>' + m.content + '<|eot|>' }}\
{% else %}{{ '<|header|>' + m.content + '<|end|>' }}{% endif %}\
{% else %}{{ '<|begin|>' + m.role + '<|header|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|begin|>assistant' }}{% endif %}"""
"""The last answer ends in another token than earlier ones, as in gpt-oss."""

GLM = """\
{% set ns = namespace(last=-1) %}\
{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}\
{{ '<think>' + (m.reasoning_content or '' if loop.index0 > ns.last else '') + '</think>' }}{% endif %}{{ m.content }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
"""Nothing ends an answer but the header of the next turn, and earlier reasoning is dropped, as in GLM."""

SURPLUS = MARKED + (
    "{% if not add_generation_prompt %}{% generation %}{{ '<|endoftext|>' }}{% endgeneration %}{% endif %}"
)
"""One more generation block than answers, as in TRL's template for Phi-3."""

SPACE_HEADER = """\
{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""


def turns(*contents: str) -> list[dict[str, Any]]:
    """Return user and assistant turns in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def trained(encoder: Encoder, messages: Sequence[dict[str, Any]]) -> list[str]:
    """Return the trained runs of a conversation."""
    sample = encoder.encode({"messages": list(messages)}, "messages").sample
    return runs(encoder, sample)


def runs(encoder: Encoder, sample: Sample) -> list[str]:
    """Return the text of each run of trained tokens."""
    found: list[list[int]] = []
    previous = 0
    for token, flag in zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True):
        if flag:
            found = found if previous else [*found, []]
            found[-1].append(token)
        previous = flag
    return [encoder.decode(tokens) for tokens in found]


def with_stops(folder: Path, target: Path, stops: Sequence[str], file: str = "generation_config.json") -> Path:
    """Copy a tokenizer to a folder whose config names stop tokens."""
    tokenizer = make_encoder(folder, CHATML)._tokenizer
    tokenizer.chat_template = None
    tokenizer.save_pretrained(str(target))
    ids = tokenizer.convert_tokens_to_ids(list(stops))
    (target / file).write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return target


def test_ends_that_differ_by_turn(folder: Path) -> None:
    """Each turn ends in its own token, also where the answer's text contains them all."""
    encoder = make_encoder(folder, GPT_OSS)
    text = "b<|end|><|eot|><|eom|>"
    wanted = ["<|header|>a<|end|>", f"<|header|>{text}<|end|>", "<|header|>c<|eot|>"]
    assert trained(encoder, turns("1", "a", "2", text, "3", "c")) == wanted
    assert trained(encoder, turns("1", "a", "2", text, "3")) == wanted[:2]
    call = {"type": "function", "function": {"name": "area", "arguments": {"w": 3}}}
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    rest = [{"role": "tool", "content": "9"}, *turns("x", "a")[1:], *turns("2", "b")]
    called = ' to=area<|header|>{"w": 3}<|eom|>'
    assert trained(encoder, asked) == [called]
    assert trained(encoder, asked + rest) == [called, "<|header|>a<|end|>", "<|header|>b<|eot|>"]


def test_junctions_are_learned_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of single turns run for the first conversation of a kind only."""
    encoder = make_encoder(folder, GPT_OSS)
    conversation = turns("1", "a", "2", "b", "3", "c", "4", "d")
    first = trained(encoder, conversation)
    monkeypatch.setattr(turn_spans, "_by_rules", None)
    assert trained(encoder, conversation) == first


def test_reasoning_dropped_from_an_earlier_turn(folder: Path, tmp_path: Path) -> None:
    """The turn ends at its words, and at the next turn's header where this is a stop token."""
    conversation = turns("1", "a", "2", "b")
    conversation[1]["reasoning_content"] = "first"
    conversation[3]["reasoning_content"] = "second"
    wanted = ["<think></think>a", "<think>second</think>b"]
    assert trained(make_encoder(folder, GLM), conversation) == wanted
    stopping = make_encoder(with_stops(folder, tmp_path, ["<|user|>", "<|end|>"]), GLM)
    # This tokenizer's <|user|> absorbs the newline behind it.
    assert [run.strip() for run in trained(stopping, conversation)] == [wanted[0] + "<|user|>", wanted[1]]


def test_untrained_answers_in_a_row_are_not_part_of_the_next(folder: Path) -> None:
    """Where answers are joined under one header, the flag of each holds."""
    template = (
        "{% for m in messages %}{% set joined = not loop.first and messages[loop.index0 - 1].role == m.role %}"
        "{{ '' if joined else '<|begin|>' + m.role + '<|header|>' }}{{ m.content }}"
        "{{ '' if not loop.last and messages[loop.index0 + 1].role == m.role else '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|begin|>assistant<|header|>' }}{% endif %}"
    )
    encoder = make_encoder(folder, template)
    answers = [
        {"role": "assistant", "content": text, "train": flag} for text, flag in (("One.", False), ("Two.", True))
    ]
    assert trained(encoder, [*turns("q"), *answers]) == ["Two.<|eot|>"]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_stop_tokens_are_those_of_the_config(file: str, folder: Path, tmp_path: Path) -> None:
    """Lists and single ids, of a nested config too; a missing or broken file adds nothing."""
    target = with_stops(folder, tmp_path, ["<|eot|>", "<|eom|>"], file)
    tokenizer = make_encoder(target, CHATML)._tokenizer
    names = tokenizer.convert_ids_to_tokens(list(stop_token_ids(ModelSpec(name=str(target)), tokenizer)))
    assert set(names) == {"</s>", "<|eot|>", "<|eom|>"}
    (target / file).write_text(json.dumps({"text_config": {"eos_token_id": 5}, "eos_token_id": None}))
    own = tokenizer.eos_token_id
    assert set(stop_token_ids(ModelSpec(name=str(target)), tokenizer)) == {5, own}
    for broken in ("{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [true, 10000000, -1]}'):
        (target / file).write_text(broken)
        assert stop_token_ids(ModelSpec(name=str(target)), tokenizer) == (own,)


def test_stop_tokens_of_a_model_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files in the hub's cache are read; without them, the tokenizer's own token remains."""
    tokenizer = make_encoder(folder, CHATML)._tokenizer
    cache = tmp_path / "models--some--model"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert stop_token_ids(ModelSpec(name="some/model"), tokenizer) == (tokenizer.eos_token_id,)
    (snapshot / "generation_config.json").write_text('{"eos_token_id": [5]}')
    (snapshot / "config.json").write_text('{"eos_token_id": 6}')
    assert set(stop_token_ids(ModelSpec(name="some/model"), tokenizer)) == {5, 6, tokenizer.eos_token_id}


def test_a_stop_token_behind_the_end_of_turn_is_trained(folder: Path, tmp_path: Path) -> None:
    """Cohere writes two tokens, of which the second is the model's stop token."""
    template = CHATML.replace("'<|im_end|>'", "'<|im_end|><|eot|>'")
    encoder = make_encoder(with_stops(folder, tmp_path, ["<|eot|>"]), template)
    assert trained(encoder, turns("q", "a", "r", "b")) == ["a<|im_end|><|eot|>", "b<|im_end|><|eot|>"]


def test_a_job_without_a_trained_stop_token_warns(folder: Path, tmp_path: Path) -> None:
    """Counts of batches add up; the warning names the stop tokens and the tokens that were seen."""
    encoder = make_encoder(with_stops(folder, tmp_path, ["<|eot|>"]), CHATML)
    records = [{"messages": turns("q", "a", "r", "b")}] * 3
    endings = encoder.encode_columns(records, "messages").endings + encoder.encode_columns(records, "messages").endings
    assert (endings.num_spans, endings.num_stopped) == (12, 0)
    warning = encoder.stop_warning(endings) or ""
    assert "'<|eot|>'" in warning
    assert "'<|im_end|>'" in warning
    stopped = encoder.encode_columns([{"messages": turns("q", "a<|eot|>")}], "messages").endings
    assert encoder.stop_warning(endings + replace(stopped, num_stopped=1)) is None
    assert encoder.stop_warning(NO_ENDINGS) is None
    assert NO_ENDINGS + endings == endings
    assert isinstance(endings, Endings)


def test_white_space_behind_the_stop_token_is_no_other_ending(folder: Path, tmp_path: Path) -> None:
    """A template may mark the newline behind it."""
    template = MARKED.replace("'<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "'<|im_end|>\n' }}{% endgeneration %}")
    assert template != MARKED
    encoder = make_encoder(with_stops(folder, tmp_path, ["<|im_end|>"]), template)
    batch = encoder.encode_columns([{"messages": turns("q", "a", "r", "b")}], "messages")
    assert trained(encoder, turns("q", "a")) == ["a<|im_end|>\n"], "a marked span is used as it is"
    assert (batch.endings.num_spans, batch.endings.num_stopped) == (2, 2)


def test_surplus_blocks_belong_to_the_turn_before(folder: Path) -> None:
    """Blocks of special tokens only are trained with their turn, or left out with it."""
    encoder = make_encoder(folder, SURPLUS)
    assert trained(encoder, turns("q", "a", "r", "b")) == ["a<|im_end|>", "b<|im_end|>", "<|endoftext|>"]
    conversation = turns("q", "a", "r", "b")
    conversation[3]["train"] = False
    assert trained(encoder, conversation) == ["a<|im_end|>"]


def spaced_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer whose words hold the space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["assistant: Hello there. Hello Hello user: Hi Hello"] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>")])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("content", ["Hello.", "Hello Hello.", "  Hello."])
def test_the_first_token_behind_a_space_is_trained(content: str, tmp_path: Path) -> None:
    """A header that ends in a space shares this space with the answer's first token."""
    encoder = make_encoder(spaced_tokenizer(tmp_path), SPACE_HEADER)
    found = trained(encoder, turns("Hi", content, "Hi", content))
    assert [run.strip() for run in found] == [content.strip() + "</s>"] * 2


def test_the_first_token_of_a_real_tokenizer_is_trained(shared_dir: Path) -> None:
    """A SentencePiece vocabulary writes the space of the header as a part of the first word."""
    encoder = make_encoder(shared_dir / "models" / "stories260K", SPACE_HEADER)
    sample = encoder.encode({"messages": turns("Hi", "Once upon a time.", "Hi", "The end.")}, "messages").sample
    first = [run.strip() for run in runs(encoder, sample)]
    assert first == ["Once upon a time.</s>", "The end.</s>"]
    starts = sample.loss_mask[1:] > sample.loss_mask[:-1]
    words = encoder._tokenizer.convert_ids_to_tokens(sample.input_ids[1:][starts].tolist())
    assert all(word.startswith("\u2581") for word in words), "the case needs tokens that hold the header's space"


def test_training_ranges_leave_out_their_characters(folder: Path) -> None:
    """Ranges count characters of the content. Tokens across an edge of a range are not trained."""
    content = "Wrong. Right. End"
    cases: list[tuple[tuple[Range, ...], str]] = [
        (((0, 6, False), (6, 13, True)), " Right. End<|im_end|>"),
        (((6, 13, False),), "Wrong. End<|im_end|>"),
        (((0, 17, False),), "<|im_end|>"),
        (((0, 4, True), (100, 200, False)), content + "<|im_end|>"),
    ]
    for template in (CHATML, MARKED, QWEN3.replace("loop.last or thought", "thought")):
        encoder = make_encoder(folder, template)
        for ranges, wanted in cases:
            assert "".join(ranged(encoder, [*turns("q", content)], {1: ranges})) == wanted


def test_training_ranges_follow_the_content(folder: Path) -> None:
    """Reasoning in front, a system turn inserted, and trimmed white space do not move the ranges."""
    encoder = make_encoder(folder, CHATML)
    conversation = turns("q", "  Wrong. Right.")
    conversation[1]["reasoning_content"] = "thought"
    ranges: tuple[Range, ...] = ((2, 8, False),)
    found = "".join(ranged(encoder, conversation, {1: ranges}, tools=[{"function": {"name": "f"}}]))
    assert found == "<think>\nthought\n</think>\n\n   Right.<|im_end|>"
    trimming = make_encoder(folder, CHATML.replace("m.content", "m.content | trim"))
    assert "".join(ranged(trimming, turns("q", "  Wrong. Right."), {1: ranges})) == " Right.<|im_end|>"


def test_training_ranges_of_words_that_repeat_are_refused(folder: Path) -> None:
    """The template writes the answer twice; which one the range means is not ours to guess."""
    template = CHATML.replace("m.content +", "m.content + '|' + m.content +")
    with pytest.raises(RecordError, match=r"mask_not_verified: cannot prove where the training ranges of turn 2 are"):
        ranged(make_encoder(folder, template), turns("q", "Wrong. Right."), {1: ((0, 6, False),)})


def ranged(
    encoder: Encoder, messages: list[dict[str, Any]], ranges: dict[int, tuple[Range, ...]], tools: Any = None
) -> list[str]:
    """Return the trained runs of a conversation with training ranges."""
    flags = tuple(message["role"] == "assistant" for message in messages)
    rendering = encoder._render(Conversation(tuple(messages), tools, flags, ranges=ranges))
    spans = trained_spans(rendering)
    located = encoder._locator.locate([rendering.text])
    mask = token_masks([rendering], [spans], located)
    return runs(encoder, Sample(located.ids, mask))


def test_turn_numbers_are_the_users(folder: Path) -> None:
    """Turns are counted from 1, without a system turn from a column, and merged turns keep their numbers."""
    template = (
        "{% for m in messages %}{% if 'lost' not in m.content %}{{ m.role + m.content + '\n' }}{% endif %}{% endfor %}"
    )
    encoder = make_encoder(folder, template)
    plain = ({"role": "system", "content": "s"}, *turns("a", "b", "lost", "c"))
    flags = tuple(message["role"] == "assistant" for message in plain)
    with pytest.raises(RecordError, match=r"rewrites turn 4 \(user\)"):
        encoder._render(Conversation(plain, None, flags))
    with pytest.raises(RecordError, match=r"rewrites turn 3 \(user\)"):
        encoder._render(Conversation(plain, None, flags, first_turn=1))
    results = [*turns("a", "b"), *({"role": "tool", "content": "r"} for _ in range(3)), *turns("lost", "c")]
    flags = tuple(message["role"] == "assistant" for message in results)
    with pytest.raises(RecordError, match=r"rewrites turn 6 \(user\)"):
        make_encoder(folder, template.replace("m.role +", "(m.role if m.role != 'tool' else '') +"))._render(
            Conversation(tuple(results), [{"function": {"name": "f"}}], flags)
        )
