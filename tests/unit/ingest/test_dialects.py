"""Turns, parts, roles, flags, calls and columns as other tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import FormatName
from qtune_service.ingest.formats import detect_format, to_conversation
from qtune_service.ingest.messages import ROLES, parse_turns
from qtune_service.ingest.records import NO_NAMES, ColumnNames, Conversation, RecordError, Tokenized
from qtune_service.ingest.tools import Arguments, parse_tools

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
PLAIN = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})


def convert(record: dict[str, Any], names: ColumnNames = NO_NAMES, name: FormatName | None = None) -> Conversation:
    """Convert a record of the detected format."""
    found = name or detect_format([record], names)
    assert found is not None, record
    conversation = to_conversation(record, found, names)
    assert isinstance(conversation, Conversation)
    return conversation


def refusal(record: dict[str, Any], names: ColumnNames = NO_NAMES, name: FormatName = "messages") -> RecordError:
    """Return the error of a record."""
    with pytest.raises(RecordError) as caught:
        to_conversation(record, name, names)
    return caught.value


KEYS = [("role", "content"), ("from", "value"), ("role", "value"), ("role", "text"), ("speaker", "utterance")]


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat"])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("roles", [("user", "assistant"), ("Human", "GPT"), ("PROMPTER", "bot"), ("user ", "ChatGPT")])
def test_columns_keys_and_roles_of_turns(column: str, keys: tuple[str, str], roles: tuple[str, str]) -> None:
    """All known names mean the same, in any case, as lists or as JSON text."""
    turns = [{keys[0]: role, keys[1]: text} for role, text in zip(roles, "QA", strict=True)]
    for value in (turns, json.dumps(turns), [json.dumps(turn) for turn in turns]):
        if isinstance(value, list) and isinstance(value[0], str):
            assert to_conversation({column: value}, "messages") == Conversation(PLAIN, None, (False, True))
            continue
        conversation = convert({"id": 1, column: value})
        assert (conversation.messages, conversation.trained) == (PLAIN, (False, True))


def test_padded_keys_of_both_dialects() -> None:
    """Arrow gives every turn the keys of all turns; a null key is no key."""
    padded = [{"from": "human", "value": "Q", "role": None, "content": None}]
    padded += [{"from": None, "value": None, "role": "assistant", "content": "A"}]
    assert convert({"conversations": padded}).messages == PLAIN


NAMES_IN_ANY_CASE: list[dict[str, Any]] = [
    {"Messages": [{"Role": "User", "Content": "Q"}, {"Role": "Assistant", "Content": "A"}]},
    {"Question": "Q", "Answer": "A"},
    {"Instruction": "Q", "Output": "A", "Input": ""},
    {" prompt": "Q", "RESPONSE": "A"},
]


@pytest.mark.parametrize("record", NAMES_IN_ANY_CASE)
def test_names_in_any_case(record: dict[str, Any]) -> None:
    """As spreadsheets write them; a column in the known case takes precedence."""
    assert convert(record).messages == PLAIN
    system = {"role": "system", "content": "S"}
    assert convert({**record, "System Prompt": "S"}).messages == (system, *PLAIN)
    both = {**record, "System": "T", "system": "S"}
    assert convert(both).messages == (system, *PLAIN)


def test_texts_of_several_turns_in_one_object() -> None:
    """As Firefly and ms-swift (human, assistant) and xtuner (system, input, output) write them."""
    pairs = [{"human": "Q", "assistant": "A"}, {"human": "Q", "assistant": "A"}]
    assert convert({"conversation": pairs}).messages == PLAIN * 2
    xtuner = [{"system": "S", "input": "Q", "output": "A"}, {"input": "Q", "output": "A"}]
    found = convert({"conversation": xtuner})
    assert found.messages == ({"role": "system", "content": "S"}, *PLAIN, *PLAIN)
    assert found.trained == (False, False, True, False, True)


@pytest.mark.parametrize("role", ROLES)
def test_every_known_role(role: str) -> None:
    """In upper case too."""
    content = "t" if ROLES[role] != "assistant" or "call" not in role else '{"name": "f"}'
    turns = parse_turns([{"role": role.upper(), "content": content}], "messages")
    assert turns.messages[0]["role"] == ROLES[role]


def test_names_that_the_job_gives() -> None:
    """Columns, keys of turns and roles; the names are those of the data."""
    names = ColumnNames(
        messages="talk", columns={"who": "role", "says": "content", "rules": "system"}, roles={"Eve": "assistant"}
    )
    record = {"talk": [{"who": "user", "says": "Q"}, {"who": "eve", "says": "A"}], "rules": "S", "id": 1}
    assert convert(record, names).messages == ({"role": "system", "content": "S"}, *PLAIN)
    pair = ColumnNames(columns={"q": "prompt", "a": "completion"})
    assert convert({"q": "Q", "a": "A"}, pair).messages == PLAIN
    dolly = ColumnNames(columns={"context": "input", "response": "output"})
    found = convert({"instruction": "I", "context": "C", "response": "A"}, dolly)
    assert found.messages[0]["content"] == "I\nC"
    assert refusal({"talk": [{"who": "Bob", "says": "x"}]}, names).detail.startswith("turn 1 of talk has role 'Bob'")


TEXT_PARTS: list[Any] = [
    [{"type": "text", "text": "A"}],
    [{"type": "text", "value": "A"}],
    [{"type": "text", "text": "A", "image_url": None, "value": None}],
    [{"text": "A"}],
    [{"text": "A", "image": None}],
    [{"type": "output_text", "text": "A", "annotations": []}],
    ["A"],
    {"type": "text", "text": "A"},
    [{"type": "refusal", "refusal": "A"}],
]


@pytest.mark.parametrize("content", TEXT_PARTS)
def test_parts_that_are_text(content: Any) -> None:
    """Every dialect's text part is its text."""
    assert convert({"messages": [USER, {"role": "assistant", "content": content}]}).messages == PLAIN


REASONING: list[dict[str, Any]] = [
    {"content": "A", "reasoning_content": "R"},
    {"content": "A", "reasoning": "R"},
    {"content": "A", "thinking": "R", "reasoning_content": None},
    {"content": "A", "thinking": "R", "reasoning_content": "R"},
    {"content": "A", "thought": "R"},
    {"content": "A", "reasoning_details": [{"type": "reasoning.text", "text": "R"}], "reasoning": "R"},
    {"content": [{"type": "reasoning", "value": "R"}, {"type": "text", "value": "A"}]},
    {"content": [{"type": "thinking", "thinking": "R", "signature": "x"}, {"type": "text", "text": "A"}]},
    {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "R"}]}, {"text": "A"}]},
]


@pytest.mark.parametrize("turn", REASONING)
def test_reasoning_by_any_name(turn: dict[str, Any]) -> None:
    """It always arrives under one name."""
    found = convert({"messages": [USER, {"role": "assistant", **turn}]})
    assert found.messages[1] == {"role": "assistant", "content": "A", "reasoning_content": "R"}


def test_two_reasonings_that_differ_are_refused() -> None:
    """None of the two is left out silently."""
    error = refusal({"messages": [USER, {**ANSWER, "reasoning": "R", "thinking": "T"}]})
    assert (error.reason_code, "turn 2" in error.detail) == ("bad_type", True)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLS: list[dict[str, Any]] = [
    {"content": None, "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]},
    {"content": None, "tool_calls": [{"name": "f", "args": {"x": 1}}]},
    {"content": "", "tool_calls": json.dumps([{"function": {"name": "f", "arguments": {"x": 1}}}])},
    {"tool_calls": [json.dumps({"name": "f", "parameters": {"x": 1}})]},
    {"content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
    {"content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]},
    {"content": [], "function_call": {"name": "f", "arguments": '{"x": 1}'}},
]


@pytest.mark.parametrize("turn", CALLS)
def test_calls_in_all_forms(turn: dict[str, Any]) -> None:
    """Lists, text, parts: the same call."""
    found = convert({"messages": [USER, {"role": "assistant", **turn}]})
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_results_and_texts_of_calls() -> None:
    """A result as a part is a tool turn with the call's id; arguments that came as text keep it."""
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    turns = [USER, {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]}]
    turns += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"text": "3"}]}]}]
    found = convert({"messages": [*turns, ANSWER]})
    assert found.messages[1]["content"] == "I look."
    assert found.messages[1]["tool_calls"][0]["id"] == "t1"
    assert found.messages[2] == {"role": "tool", "content": "3", "tool_call_id": "t1"}
    text = '{"b":1,  "a": 2}'
    turn = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
    arguments = convert({"messages": [USER, turn]}).messages[1]["tool_calls"][0]["function"]["arguments"]
    assert isinstance(arguments, Arguments)
    assert (arguments.text, dict(arguments)) == (text, {"b": 1, "a": 2})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOLS: list[Any] = [
    [TOOL],
    json.dumps([TOOL]),
    [json.dumps(TOOL)],
    [TOOL["function"]],
    TOOL["function"],
    [{"name": "f", "input_schema": {"type": "object"}}],
    [{"name": "f", "parameters": '{"type": "object"}'}],
    [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}}],
]


@pytest.mark.parametrize("tools", TOOLS)
def test_tools_in_all_forms_and_places(tools: Any) -> None:
    """In the columns tools and functions, and in the system turn; twice is once."""
    assert parse_tools(tools, "tools") == [TOOL]
    turns = [{"role": "system", "content": "", "tools": tools}, USER, ANSWER]
    assert convert({"messages": [USER, ANSWER], "functions": tools}).tools == [TOOL]
    assert convert({"messages": turns}).tools == [TOOL]
    assert convert({"messages": turns, "tools": [TOOL]}).tools == [TOOL]
    assert convert({"instruction": "Q", "output": "A", "tools": tools}).tools == [TOOL]
    assert convert({"prompt": "Q", "completion": "A", "tools": tools}).tools == [TOOL]


FLAGS: list[tuple[dict[str, Any], bool]] = [
    *(({flag: 0}, False) for flag in ("loss", "train", "weight", "step_loss_mask", "loss_weight", "trainable")),
    *(({flag: True}, True) for flag in ("training", "train_on_turn", "loss_weight")),
    ({"masked": True}, False),
    ({"masked": False}, True),
    ({"masked": False, "weight": 0}, False),
    ({"loss_weight": None}, True),
]


@pytest.mark.parametrize(("flags", "is_trained"), FLAGS)
def test_flags_of_turns(flags: dict[str, Any], is_trained: bool) -> None:
    """Every known flag decides; on other turns it is counted where it asks for training."""
    turns = [USER, {**ANSWER, **flags}, USER, ANSWER]
    assert convert({"messages": turns}).trained == (False, is_trained, False, True)
    noted = convert({"messages": [{**USER, **flags}, ANSWER]}).notes
    assert bool(noted) == any(flags.get(name) == 1 for name in flags if name != "masked")


def test_ranges_of_characters() -> None:
    """Axolotl's offsets include the end; what is not in order within the content is refused."""
    detail = [
        {"begin_offset": 0, "end_offset": 5, "train": False},
        {"begin_offset": 6, "end_offset": 12, "train": True},
    ]
    turn = {"role": "assistant", "content": "Wrong. Right.", "training_detail": detail}
    assert convert({"messages": [USER, turn]}).ranges == {1: ((0, 6, False), (6, 13, True))}
    assert convert({"messages": [USER, turn], "system": "S"}).ranges == {2: ((0, 6, False), (6, 13, True))}
    for wrong in ([{"begin_offset": 0}], [{**detail[1], "end_offset": 13}], [detail[1], detail[0]], "0-5"):
        assert refusal({"messages": [USER, {**turn, "training_detail": wrong}]}).reason_code == "bad_flag"


REFUSED: list[tuple[str, dict[str, Any], FormatName]] = [
    ("not_text", {"messages": [USER, ANSWER], "images": ["a.jpg"]}, "messages"),
    ("not_text", {"conversations": [USER, ANSWER], "image": "a.jpg"}, "sharegpt"),
    ("not_text", {"instruction": "I", "output": "O", "audio": {"path": "a"}}, "alpaca"),
    ("not_text", {"prompt": "P", "completion": "C", "videos": ["v"]}, "prompt_completion"),
    ("not_text", {"messages": [{**USER, "images": ["x"]}, ANSWER]}, "messages"),
    ("not_text", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "messages"),
    ("negative_example", {"messages": [USER, ANSWER], "label": False}, "messages"),
    ("negative_example", {"prompt": "P", "completion": "C", "label": False}, "prompt_completion"),
    ("negative_example", {"instruction": "I", "output": "O", "kto_tag": False}, "alpaca"),
    ("negative_example", {"messages": [USER, ANSWER], "rejected_response": "bad"}, "messages"),
    ("no_trained_turn", {"messages": [USER, ANSWER], "weight": 0}, "messages"),
    ("no_trained_turn", {"prompt": "P", "completion": "C", "train": False}, "prompt_completion"),
    ("no_trained_turn", {"prompt": "P", "completion": "C", "weight": "0.0"}, "prompt_completion"),
    ("negative_example", {"prompt": "P", "completion": "C", "label": "False"}, "prompt_completion"),
]


@pytest.mark.parametrize(("reason", "record", "name"), REFUSED)
def test_what_a_mask_cannot_honour_is_refused(reason: str, record: dict[str, Any], name: FormatName) -> None:
    """Media, bad examples, and records that are excluded."""
    assert refusal(record, name=name).reason_code == reason
    empty: dict[str, Any] = {"images": [], "image": None, "audio": None, "videos": [], "label": True, "kto_tag": True}
    empty |= {"rejected_response": "", "weight": 1, "train": True}
    good = {key: empty.get(key, value) for key, value in record.items()}
    if not any("images" in turn or isinstance(turn["content"], list) for turn in record.get("messages", ())):
        assert isinstance(to_conversation(good, name), Conversation)


def test_padded_columns() -> None:
    """Arrow pads the union of two kinds of rows with null, also in media; the filled columns are read."""
    padded = {
        "messages": None,
        "conversations": [USER, ANSWER],
        "image": {"bytes": None, "path": None},
        "images": [None],
    }
    assert convert(padded, name="messages").messages == PLAIN
    pair = {"prompt": None, "completion": None, "question": "Q", "answer": "A"}
    assert convert(pair, name="prompt_completion").messages == PLAIN
    assert refusal({"messages": None, "text": "t"}).reason_code == "missing_field"


def test_one_side_of_a_preference_pair() -> None:
    """The chosen side is read where it is named; the rejected side never is."""
    record = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert detect_format([record]) is None
    assert convert(record, ColumnNames("prompt", "chosen")).messages == PLAIN
    whole = {"prompt": "Q", "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "B"}]}
    assert convert(whole, ColumnNames("prompt", "chosen")).messages == PLAIN
    assert convert(whole, ColumnNames(messages="chosen")).messages == PLAIN
    for names in (ColumnNames("prompt", "rejected"), ColumnNames(messages="rejected")):
        assert refusal(whole, names, detect_format([whole], names) or "auto").reason_code == "negative_example"
    named = ColumnNames(messages="messages")
    assert convert({"messages": [USER, ANSWER], "rejected_response": "bad"}, named).messages == PLAIN


def test_columns_of_the_conversation() -> None:
    """System prompts, history, variables and documents of every format."""
    swift = {"system": "S", "query": "Q", "response": "A", "history": [["h", "a"]]}
    assert [m["content"] for m in convert(swift).messages] == ["S", "h", "a", "Q", "A"]
    bedrock = {"system": [{"text": "S"}], "messages": [USER, {"role": "assistant", "content": [{"text": "A"}]}]}
    assert convert(bedrock).messages == ({"role": "system", "content": "S"}, *PLAIN)
    record: dict[str, Any] = {"messages": [USER, ANSWER], "documents": [{"text": "D"}]}
    record["chat_template_kwargs"] = '{"enable_thinking": false, "x": null}'
    assert convert(record).template_kwargs == {"enable_thinking": False, "documents": [{"text": "D"}]}
    reasoned = {"question": "Q", "answer": "A", "reasoning_content": "R"}
    assert convert(reasoned).messages[1]["reasoning_content"] == "R"


@pytest.mark.parametrize("mask", ["loss_mask", "assistant_masks", "completion_mask"])
def test_tokens_with_any_mask(mask: str) -> None:
    """TRL's masks are masks; packed rows are refused, since their samples see each other's tokens."""
    record: dict[str, Any] = {"input_ids": [5, 6, 7], mask: [0, 0, 1], "position_ids": [0, 1, 2]}
    assert detect_format([record]) == "tokenized"
    tokens = to_conversation(record, "tokenized")
    assert isinstance(tokens, Tokenized)
    assert tokens.loss_mask.tolist() == [0, 0, 1]
    assert refusal({**record, "position_ids": [0, 0, 1]}, name="tokenized").reason_code == "packed"


CASES: list[tuple[str, tuple[int, int]]] = [
    ("03-context-left-out-silently/functions.jsonl", (1, 0)),
    ("03-context-left-out-silently/images.jsonl", (0, 1)),
    ("03-context-left-out-silently/kwargs.jsonl", (1, 0)),
    ("03-context-left-out-silently/llava.jsonl", (0, 1)),
    ("03-context-left-out-silently/system.jsonl", (1, 0)),
    ("03-context-left-out-silently/tools_in_turn.jsonl", (1, 0)),
    ("04-reasoning-other-names/data.jsonl", (3, 0)),
    *((f"07-names/{name}.jsonl", (1, 0)) for name in ("bot", "capital", "chatbot", "conversation", "ipython")),
    *((f"07-names/{name}.jsonl", (1, 0)) for name in ("messages_fromvalue", "prompter")),
    *((f"09-llamafactory-v1-parts/{name}.jsonl", (1, 0)) for name in ("bedrock", "v1", "v1_tools")),
    ("10-mask-flags-ignored/kto.jsonl", (0, 1)),
    ("10-mask-flags-ignored/loss_weight.jsonl", (1, 0)),
    ("10-mask-flags-ignored/training_detail.jsonl", (1, 0)),
    ("15-system-twice/data.jsonl", (2, 0)),
    ("18-unhelpful-messages/json_string.jsonl", (1, 0)),
    ("18-unhelpful-messages/swift.jsonl", (1, 0)),
    ("18-unhelpful-messages/assistant_masks.jsonl", (1, 0)),
]


@pytest.mark.parametrize(("path", "counts"), CASES)
def test_field_cases(shared_dir: Path, path: str, counts: tuple[int, int]) -> None:
    """Records that people reported are read or refused: (read, refused)."""
    records = [json.loads(line) for line in (shared_dir / "field_cases" / path).read_text().splitlines()]
    found = detect_format(records)
    assert found is not None
    read = refused = 0
    for record in records:
        try:
            to_conversation(record, found)
            read += 1
        except RecordError:
            refused += 1
    assert (read, refused) == counts
