"""ingest/formats.py: detection, and what each format becomes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from qtune_service.config import FormatName
from qtune_service.ingest.formats import detect_format, to_conversation, used_columns
from qtune_service.ingest.records import ColumnNames, Conversation, RecordError, Tokenized

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}


def convert(record: dict[str, Any], name: FormatName, **columns: Any) -> Conversation:
    """Convert a record of a format that holds no tokens."""
    conversation = to_conversation(record, name, ColumnNames(**columns))
    assert isinstance(conversation, Conversation)
    return conversation


def refusal(record: dict[str, Any], name: FormatName, **columns: Any) -> RecordError:
    """Return the error of a record that must be refused."""
    with pytest.raises(RecordError) as caught:
        to_conversation(record, name, ColumnNames(**columns))
    return caught.value


DETECTED: list[tuple[dict[str, Any], FormatName | None]] = [
    ({"messages": [USER, ANSWER]}, "messages"),
    ({"prompt": "p", "prompt_id": "1", "messages": [USER, ANSWER]}, "messages"),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sharegpt"),
    ({"conversations": [USER, ANSWER]}, "sharegpt"),
    ({"instruction": "i", "input": "", "output": "o"}, "alpaca"),
    ({"instruction": "i", "output": "o"}, "alpaca"),
    ({"prompt": "p", "completion": "c"}, "prompt_completion"),
    ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion"),
    ({"question": "q", "answer": "a"}, "prompt_completion"),
    ({"instruction": "i", "response": "r"}, "prompt_completion"),
    ({"instruction": "i", "context": "", "response": "r"}, "prompt_completion"),
    ({"input_ids": [1, 2], "labels": [-100, 2]}, "tokenized"),
    ({"input_ids": np.array([1, 2]), "loss_mask": np.array([0, 1])}, "tokenized"),
    ({"input_ids": [1], "attention_mask": [1]}, None),
    ({"instruction": "i", "context": "needed to answer", "response": "r"}, None),
    ({"question": "q", "choices": ["a", "b"], "answer": "a"}, None),
    ({"question": "q", "answer": 3}, None),
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, None),
    ({"message_tree_id": "1", "prompt": {"text": "t", "role": "prompter", "replies": []}}, None),
    ({"text": "a document"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("record", "expected"), DETECTED)
def test_format_is_detected_by_columns(record: dict[str, Any], expected: FormatName | None) -> None:
    """Known shapes are found; what would lose context or is another task is not."""
    assert detect_format([record]) == expected


def test_detection_follows_the_majority_and_named_columns() -> None:
    """A few broken rows do not decide, and columns that the user names settle it."""
    alpaca, broken = {"instruction": "i", "output": "o"}, {"prompt": "p", "completion": "c"}
    assert detect_format([{"junk": 1}, broken, alpaca, alpaca]) == "alpaca"
    assert detect_format([]) is None
    named = [{"q": "1", "a": "2"}]
    assert detect_format(named) is None
    assert detect_format(named, ColumnNames("q", "a")) == "prompt_completion"
    assert detect_format(named, ColumnNames("q", "b")) is None


def test_used_columns_are_those_the_format_reads() -> None:
    """All others are the user's own and survive. Known columns of context are looked at, to be counted."""
    columns = ["id", "messages", "tools", "input_ids", "labels", "passage", "lang"]
    assert used_columns("messages", columns) == {"messages", "tools", "labels", "passage"}
    assert used_columns("tokenized", columns) == {"input_ids", "labels"}
    assert used_columns("alpaca", ["id", "instruction", "history"]) == {"instruction", "history"}
    assert used_columns("prompt_completion", ["id", "question", "answer"]) == {"question", "answer"}
    assert used_columns("prompt_completion", ["id", "answer", "tools"], ColumnNames("id", "answer")) == {
        *("id", "answer", "tools")
    }
    names = ColumnNames(messages="dialog", columns={"sys": "system"})
    assert used_columns("messages", ["dialog", "sys", "id"], names) == {"dialog", "sys"}


def test_messages_keep_what_templates_read_and_drop_nulls() -> None:
    """Parquet fills absent fields with null; templates ask whether a field is defined."""
    record = {
        "messages": [
            {"role": "system", "content": "S", "tool_calls": None},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Q1 "}, {"type": "text", "text": "Q2"}],
                "name": "Eve",
            },
            {"role": "assistant", "content": "A", "reasoning_content": "R", "tool_calls": None, "loss": True},
        ]
    }
    conversation = convert(record, "messages")
    assert conversation.messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q1 Q2", "name": "Eve"},
        {"role": "assistant", "content": "A", "reasoning_content": "R"},
    )
    assert conversation.trained == (False, False, True)
    assert conversation.tools is None


@pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
def test_calls_become_objects_whatever_they_came_as(arguments: Any) -> None:
    """OpenAI lists, the older function_call and sharegpt's JSON text give the same tool_calls."""
    call = {"name": "f", "arguments": arguments}
    wanted = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    modern = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": call}]}
    older = {"role": "assistant", "content": None, "function_call": call}
    own_turn = {"from": "function_call", "value": json.dumps([call, call])}
    assert convert({"messages": [USER, modern]}, "messages").messages[1]["tool_calls"] == [{"id": "c1", **wanted}]
    assert convert({"messages": [USER, older]}, "messages").messages[1]["tool_calls"] == [wanted]
    asked = {"from": "human", "value": "Q"}
    sharegpt = convert({"conversations": [asked, own_turn, {"from": "observation", "value": "1"}]}, "sharegpt")
    assert sharegpt.messages[1:] == (
        {"role": "assistant", "content": "", "tool_calls": [wanted, wanted]},
        {"role": "tool", "content": "1"},
    )
    assert sharegpt.trained == (False, True, False)


@pytest.mark.parametrize("as_text", [True, False])
def test_tools_are_wrapped_alike(as_text: bool) -> None:
    """JSON text or a list, bare or wrapped: templates get the wrapped form."""
    bare, wrapped = {"name": "f", "parameters": {}}, {"type": "function", "function": {"name": "g"}}
    tools: Any = [bare, wrapped]
    record = {"messages": [USER, ANSWER], "tools": json.dumps(tools) if as_text else tools}
    assert convert(record, "messages").tools == [{"type": "function", "function": bare}, wrapped]
    assert convert({**record, "tools": "" if as_text else []}, "messages").tools is None


def test_sharegpt_system_column() -> None:
    """It opens the conversation. A system turn that says something else takes precedence, and is counted."""
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    conversation = convert({"conversations": turns, "system": "S"}, "sharegpt")
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.trained == (False, False, True)
    for own, wanted, num_notes in (("T", "T", 1), ("S ", "S ", 0), (" ", "S", 0)):
        both = {"conversations": [{"from": "system", "value": own}, *turns], "system": "S"}
        conversation = convert(both, "sharegpt")
        assert [m["content"] for m in conversation.messages] == [wanted, "Q", "A"]
        assert len(conversation.notes) == num_notes


def test_alpaca_with_everything() -> None:
    """System, history and input; the answers of the history are trained."""
    record = {"system": "S", "history": [["h1", "a1"], ["h2", "a2"]], "instruction": "I", "input": "X", "output": "O"}
    conversation = convert(record, "alpaca")
    assert [m["content"] for m in conversation.messages] == ["S", "h1", "a1", "h2", "a2", "I\nX", "O"]
    assert conversation.trained == (False, False, True, False, True, False, True)
    minimal = convert({"instruction": "I", "input": None, "output": "O"}, "alpaca")
    assert [m["content"] for m in minimal.messages] == ["I", "O"]


def test_prompt_completion_trains_the_completion_only() -> None:
    """Answers inside a prompt are context."""
    pair = convert({"question": "Q", "answer": "A"}, "prompt_completion")
    assert (pair.messages, pair.trained) == ((USER, ANSWER), (False, True))
    named = convert({"a": "Q", "b": "A"}, "prompt_completion", prompt="a", completion="b")
    assert named == pair
    lists = convert({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, "prompt_completion")
    assert lists.trained == (False, False, False, True)


@pytest.mark.parametrize("flag", ["loss", "train", "weight", "step_loss_mask"])
def test_training_flags_of_turns(flag: str) -> None:
    """0 and false leave a turn out; a flag on a user turn says nothing; fractions cannot be honoured."""
    record = {
        "messages": [{**USER, flag: 1}, {**ANSWER, flag: 0}, USER, {**ANSWER, flag: 1.0}, USER, {**ANSWER, flag: None}]
    }
    assert convert(record, "messages").trained == (False, False, False, True, False, True)
    shares = [
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A", flag: False},
        {"from": "gpt", "value": "A"},
    ]
    assert convert({"conversations": shares}, "sharegpt").trained == (False, False, True)
    assert refusal({"messages": [USER, {**ANSWER, flag: 0}]}, "messages").reason_code == "no_trained_turn"
    error = refusal({"messages": [USER, {**ANSWER, flag: 0.5}]}, "messages")
    assert (error.reason_code, error.detail) == (
        "bad_flag",
        f"turn 2 of messages: {flag} must be true, false, 0 or 1, got 0.5",
    )


def call_turn(function: Any) -> dict[str, Any]:
    """Return a turn that calls a tool."""
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


REFUSED: list[tuple[str, FormatName, dict[str, Any]]] = [
    ("missing_field", "messages", {"text": "t"}),
    ("missing_field", "messages", {"messages": None}),
    ("missing_field", "messages", {"messages": [{"content": "no role"}]}),
    ("missing_field", "messages", {"messages": [{"role": "user", "content": None}, ANSWER]}),
    ("missing_field", "alpaca", {"instruction": "I"}),
    ("missing_field", "prompt_completion", {"prompt": "p"}),
    ("missing_field", "tokenized", {"input_ids": [1, 2]}),
    ("bad_type", "messages", {"messages": "text"}),
    ("bad_type", "messages", {"messages": ["text"]}),
    ("bad_type", "messages", {"messages": [{"role": "user", "content": 3}, ANSWER]}),
    ("not_text", "messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]}),
    ("bad_type", "alpaca", {"instruction": "I", "output": 42}),
    ("bad_type", "alpaca", {"instruction": "I", "output": "O", "history": [["only one"]]}),
    ("bad_role", "messages", {"messages": [{"role": "narrator", "content": "x"}]}),
    ("bad_role", "sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}),
    ("bad_tool_call", "sharegpt", {"conversations": [{"from": "function_call", "value": "not JSON"}]}),
    ("bad_tool_call", "sharegpt", {"conversations": [{"from": "function_call", "value": "[]"}]}),
    ("bad_tool_call", "messages", {"messages": [USER, call_turn({"arguments": {}})]}),
    ("bad_tool_call", "messages", {"messages": [USER, call_turn({"name": "f", "arguments": "{"})]}),
    ("bad_tool_call", "messages", {"messages": [USER, call_turn({"name": "f", "arguments": "[1]"})]}),
    ("bad_tool_call", "messages", {"messages": [{**call_turn({"name": "f"}), "role": "user"}]}),
    ("bad_tools", "messages", {"messages": [USER, ANSWER], "tools": "{"}),
    ("bad_tools", "messages", {"messages": [USER, ANSWER], "tools": [{"description": "no name"}]}),
    ("no_assistant_turn", "messages", {"messages": [USER]}),
    ("no_assistant_turn", "messages", {"messages": []}),
    ("empty_response", "messages", {"messages": [USER, {"role": "assistant", "content": " \n"}]}),
    ("empty_response", "alpaca", {"instruction": "I", "output": ""}),
    ("empty_response", "prompt_completion", {"question": "Q", "answer": ""}),
    ("length_mismatch", "tokenized", {"input_ids": [1, 2], "loss_mask": [1]}),
    ("bad_token_id", "tokenized", {"input_ids": [1, -2], "loss_mask": [0, 1]}),
    ("bad_token_id", "tokenized", {"input_ids": [1, 2**31], "loss_mask": [0, 1]}),
    ("bad_type", "tokenized", {"input_ids": [1.0, 2.0], "loss_mask": [0, 1]}),
    ("bad_type", "tokenized", {"input_ids": [True, False], "loss_mask": [0, 1]}),
    ("bad_type", "tokenized", {"input_ids": [[1], [2]], "loss_mask": [0, 1]}),
    ("bad_type", "tokenized", {"input_ids": "1 2", "loss_mask": [0, 1]}),
    ("bad_type", "tokenized", {"input_ids": [1, 2], "loss_mask": [0, 2]}),
    ("labels_mismatch", "tokenized", {"input_ids": [1, 2, 3], "labels": [2, 3, -100]}),
    ("mask_conflict", "tokenized", {"input_ids": [1, 2], "labels": [-100, 2], "loss_mask": [0, 0]}),
    ("padded", "tokenized", {"input_ids": [0, 1, 2], "loss_mask": [0, 0, 1], "attention_mask": [0, 1, 1]}),
]


@pytest.mark.parametrize(("reason", "name", "record"), REFUSED)
def test_unusable_records_are_refused_with_a_reason(reason: str, name: FormatName, record: dict[str, Any]) -> None:
    """The code is stable, the detail says what was wrong, and the error crosses processes."""
    error = refusal(record, name)
    assert error.reason_code == reason
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason_code, again.detail) == (error.reason_code, error.detail)
    assert str(again) == f"{reason}: {error.detail}"


def test_tokens_with_mask_or_labels() -> None:
    """Both give the same mask; position 0 is never trained."""
    records: list[dict[str, Any]] = [
        {"input_ids": [5, 6, 7], "loss_mask": [1, 0, 1]},
        {"input_ids": [5, 6, 7], "loss_mask": [True, False, True]},
        {"input_ids": np.array([5, 6, 7]), "labels": [-100, -100, 7], "attention_mask": [1, 1, 1]},
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "loss_mask": [0, 0, 1]},
    ]
    for record in records:
        tokens = to_conversation(record, "tokenized")
        assert isinstance(tokens, Tokenized)
        assert (tokens.input_ids.tolist(), tokens.loss_mask.tolist()) == ([5, 6, 7], [0, 0, 1])
        assert (tokens.input_ids.dtype.name, tokens.loss_mask.dtype.name) == ("int32", "int8")


def test_auto_is_not_the_format_of_a_record() -> None:
    """A programming error says so."""
    with pytest.raises(ValueError, match="detect_format"):
        to_conversation({}, "auto")
