"""Data whose format is not detected: one sentence says what it is, and one what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.reader import first_records
from qtune_service.ingest.unknown_format import explain

TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
EXPLAINED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference data", "--prompt-column prompt --completion-column"),
    ({"chosen": TURNS, "rejected": TURNS}, "preference data", "--messages-column chosen"),
    ({"prompt": "Q", "chosen": TURNS, "rejected": TURNS}, "preference data", "--messages-column chosen"),
    ({"input_ids": [1, 2], "attention_mask": [1, 1]}, "no column says which tokens are trained", "loss_mask"),
    ({"prompt": {"text": "Q", "replies": []}}, "a tree of messages", "one path"),
    ({"prompt": "Q", "completion": 1}, "column completion holds numbers, not text", "as text"),
    ({"question": "Q", "answer": ["A"]}, "column answer holds a list, not text", "as text"),
    (
        {"instruction": "I", "context": "C", "response": "A"},
        "in two columns, instruction and context",
        "--column-map context=input --column-map response=output",
    ),
    (
        {"question": "Q", "choices": ["a"], "answer": "A"},
        "its column choices would be missing in the prompt",
        "into question",
    ),
    ({"talk": TURNS}, "its turns are in the column talk", "--messages-column talk"),
    ({"prompt": TURNS[:1], "reward_model": {}}, "column prompt holds prompts without answers", "column of answers"),
    ({"messages": [{"who": "x", "says": "y"}]}, "turns with the keys who, says", "--column-map who=role"),
    ({"messages": 3}, "column messages holds numbers", "--column-map"),
    ({"text": "Once upon a time."}, "plain text without prompts and answers", "column of prompts"),
    ({"a": 1, "b": 2}, "its records have the columns a, b", "--column-map"),
]


@pytest.mark.parametrize(("record", "what", "advice"), EXPLAINED)
def test_one_sentence_for_each_kind(record: dict[str, Any], what: str, advice: str) -> None:
    """And the flags in the advice name this data's columns."""
    found = explain([record])
    assert what in found[0]
    assert advice in found[1]


MISSING: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt_column": "question", "completion_column": "answr"}, "there is no column 'answr'", "'answer'"),
    ({"messages_column": "Messages"}, "there is no column 'Messages'; the columns are question, answer, turns", ""),
    ({"column_map": {"whom": "role"}}, "there is no column or key of turns 'whom'", "'who'"),
]


@pytest.mark.parametrize(("spec", "what", "near"), MISSING)
def test_a_named_column_that_is_not_there(tmp_path: Path, spec: dict[str, Any], what: str, near: str) -> None:
    """Named with the columns that are there and the nearest one, before any record is read."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "Q", "answer": "A", "turns": [{"who": "x", "says": "y"}]}))
    with pytest.raises(DataError) as caught:
        first_records(InputSpec(paths=(str(path),), **spec), 5)
    assert what in caught.value.message
    assert near in caught.value.hint


def test_an_output_is_not_an_input(tmp_path: Path) -> None:
    """Its folders hold scores and labels too; the error names the one with the kept samples."""
    (tmp_path / "scores").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is the output of a qtune job") as caught:
        first_records(InputSpec(paths=(str(tmp_path),)), 5)
    assert f"{tmp_path}/pruned" in caught.value.hint
