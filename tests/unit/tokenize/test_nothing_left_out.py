"""What a record says reaches the prompt, the mask, an own column, a rejection or a warning; it is never left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtune_service.config import FormatName
from qtune_service.ingest.fields import CONTEXT, MASKS, MEDIA, PROMPT_TEXTS, REASONING, REJECTED, SHOWN_KEYS, Use
from qtune_service.ingest.formats import detect_format, uses
from qtune_service.ingest.training_flags import FLAGS, NEGATED_FLAGS, RANGES
from qtune_service.tokenize.encoder import Encoded, Encoder
from tests.unit.tokenize.chat_models import CHATML, LLAMA3, make_encoder

BASES: dict[FormatName, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Qu1"}, {"role": "assistant", "content": "An1"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Qu1"}, {"from": "gpt", "value": "An1"}]},
    "alpaca": {"instruction": "Qu1", "output": "An1"},
    "prompt_completion": {"question": "Qu1", "answer": "An1"},
}
WORD = st.integers(0, 10**6).map(lambda number: f"Zq{number}x")
TURNS = WORD.map(lambda word: [{"role": "user", "content": word}])
TOOL = WORD.map(lambda word: [{"name": word, "parameters": {"type": "object", "properties": {}}}])
FLAG = st.sampled_from([0, 1, True, False, 0.5])
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("system", "system_prompt"), WORD),
    **dict.fromkeys(("tools", "functions"), st.one_of(TOOL, TOOL.map(json.dumps))),
    **dict.fromkeys(MEDIA, st.one_of(WORD, WORD.map(lambda word: [word]))),
    **dict.fromkeys(CONTEXT - {"history"}, st.one_of(WORD, WORD.map(lambda word: [word]))),
    **dict.fromkeys(PROMPT_TEXTS - {"input", "instruction", "output", "question", "answer"}, WORD),
    **dict.fromkeys(REASONING, WORD),
    **dict.fromkeys(REJECTED, WORD),
    **dict.fromkeys((*MASKS, "labels"), st.just([0, 1])),
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "train", "trainable"), FLAG),
    **dict.fromkeys(("label", "kto_tag"), st.sampled_from([True, False, 0, "good"])),
    "dialog": TURNS,
    "mask": st.sampled_from(["User", "Assistant"]),
    "documents": WORD.map(lambda word: [{"title": "t", "text": word}]),
    "chat_template_kwargs": WORD.map(lambda word: {"custom_instructions": word}),
    "history": WORD.map(lambda word: [[word, word]]),
}
TURN_KEYS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys((*FLAGS, *NEGATED_FLAGS), FLAG),
    **dict.fromkeys(RANGES, st.just([{"begin_offset": 0, "end_offset": 1, "train": False}])),
    **dict.fromkeys(MEDIA, WORD.map(lambda word: [word])),
    **dict.fromkeys(REASONING, WORD),
    **dict.fromkeys(SHOWN_KEYS - {"documents", "citations", "prefix"}, WORD),
    "tools": TOOL,
    "text": WORD,
    "tool_calls": WORD.map(lambda word: [{"function": {"name": word, "arguments": {}}}]),
}
UNKNOWN = st.dictionaries(st.sampled_from(["id", "lang", "score", "meta"]), WORD, max_size=2)
HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "train", "trainable"), (1, True)),
    **dict.fromkeys((*FLAGS,), (1, True)),
    "masked": (0, False),
    **dict.fromkeys(("label", "kto_tag"), (True,)),
    "mask": ("User",),
}
"""Values that ask for what happens anyway."""


@pytest.fixture(scope="module", params=[CHATML, LLAMA3], ids=["chatml", "llama3"])
def encoder(request: pytest.FixtureRequest, folder: Path) -> Encoder:
    """Return an encoder with a template without, and one with tools."""
    return make_encoder(folder, request.param)


def words_of(value: Any) -> list[str]:
    """Return the words that a value brings."""
    if isinstance(value, str):
        return [value] if value.startswith("Zq") else [word for word in value.split('"') if word.startswith("Zq")]
    if isinstance(value, dict):
        return [word for item in value.values() for word in words_of(item)]
    return [word for item in value for word in words_of(item)] if isinstance(value, list) else []


def outcome(encoder: Encoder, record: dict[str, Any], name: FormatName) -> tuple[str, int, dict[str, int], bool]:
    """Return the text, the number of trained tokens, the notes, and whether the record was rejected."""
    batch = encoder.encode_columns([record], name)
    (found,) = batch.outcomes()
    if not isinstance(found, Encoded):
        return "", 0, {}, True
    return encoder.decode(found.sample.input_ids.tolist()), int(found.sample.loss_mask.sum()), batch.notes, False


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_known_columns_are_never_left_out(encoder: Encoder, data: st.DataObject) -> None:
    """Any columns beside any format: each is shown, or changes the mask, or is noted by name, or rejects the record."""
    name = data.draw(st.sampled_from(list(BASES)))
    added = data.draw(
        st.dictionaries(st.sampled_from(sorted(COLUMNS)), st.none(), min_size=1, max_size=4).flatmap(
            lambda keys: st.fixed_dictionaries({key: COLUMNS[key] for key in keys})
        )
    )
    own = data.draw(UNKNOWN)
    record = {**BASES[name], **added, **own}
    columns = uses(name, record)
    assert all(columns[key] is Use.own for key in own)  # and own columns are carried, see test_own_columns.py
    text, _, notes, is_rejected = outcome(encoder, record, name)
    if is_rejected:
        return
    for key, value in added.items():
        words = words_of(value)
        is_shown = bool(words) and all(word in text for word in words)
        is_noted = any(f"`{key}`" in note or f"`{inner}`" in note for note in notes for inner in inner_keys(value))
        is_noted |= any(key in note for note in notes)
        assert is_shown or is_noted or value in HARMLESS.get(key, ()), (key, value, notes, text)


def inner_keys(value: Any) -> list[str]:
    """Return the keys of an object."""
    return list(value) if isinstance(value, dict) else [""]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_known_keys_of_turns_are_never_left_out(encoder: Encoder, data: st.DataObject) -> None:
    """Any keys on any turn."""
    key = data.draw(st.sampled_from(sorted(TURN_KEYS)))
    value, at = data.draw(TURN_KEYS[key]), data.draw(st.integers(0, 1))
    name: FormatName = data.draw(st.sampled_from(["messages", "sharegpt"]))
    plain = {column: [dict(turn) for turn in turns] for column, turns in BASES[name].items()}
    record = {column: [dict(turn) for turn in turns] for column, turns in plain.items()}
    next(iter(record.values()))[at] |= {key: value, **data.draw(UNKNOWN)}
    text, trained, notes, is_rejected = outcome(encoder, record, detect_format([record]) or name)
    if is_rejected:
        return
    words = words_of(value)
    is_shown = bool(words) and all(word in text for word in words)
    is_noted = any(key in note for note in notes) or any("flagged to be trained" in note for note in notes)
    is_masked = trained < outcome(encoder, plain, name)[1]
    means_nothing = at == 0 and key in (*FLAGS, *NEGATED_FLAGS, *RANGES)  # turns of others are never trained
    assert is_shown or is_noted or is_masked or means_nothing or value in HARMLESS.get(key, ()), (
        key,
        value,
        notes,
        text,
    )
