"""Tests of JSON files that hold records in other shapes than arrays of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import DataError
from qtune_service.ingest import json_reader
from qtune_service.ingest.json_shapes import first_members, rows_of, wrapper_keys
from tests.unit.ingest.planning import plan_of, read_all, records_of

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
TEXT = json.dumps(TURNS)
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
PAIRS = [{"prompt": f"p{i}", "completion": "c"} for i in range(300)]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def read(tmp_path: Path, name: str, text: str, **options: Any) -> list[Any]:
    """Return the records of a file."""
    path = tmp_path / name
    path.write_text(text)
    return records_of(plan_of(tmp_path / "work", path, **options))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(TURNS), [{"messages": TURNS}]),
        (json.dumps(TURNS, indent=2), [{"messages": TURNS}]),
        (json.dumps(SHARED), [{"conversations": SHARED}]),
        (json.dumps([TURNS, TURNS]), [{"messages": TURNS}] * 2),
        (json.dumps([TURNS, TURNS], indent=2), [{"messages": TURNS}] * 2),
        (f"{json.dumps(TURNS)}\n{json.dumps(TURNS)}\n", [{"messages": TURNS}] * 2),
        (f"{json.dumps(SHARED)}\n{json.dumps({'conversations': SHARED})}", [{"conversations": SHARED}] * 2),
        (json.dumps({"data": PAIRS}), PAIRS),
        (json.dumps({"version": "1", "info": {"by": "me"}, "train": PAIRS, "count": 300}, indent=1), PAIRS),
        (json.dumps({"data": [TURNS, TURNS]}), [{"messages": TURNS}] * 2),
        (json.dumps({"prompt": ["a", None], "completion": ["c", "d"], "n": [1, 2]}),
         [{"prompt": "a", "completion": "c", "n": 1}, {"prompt": None, "completion": "d", "n": 2}]),
        (json.dumps({"messages": [TURNS, TURNS], "id": ["a", "b"]}),
         [{"messages": TURNS, "id": "a"}, {"messages": TURNS, "id": "b"}]),
        (json.dumps({"input_ids": [[1, 2], [3]], "labels": [[-100, 2], [3]]}),
         [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]),
        (json.dumps({"0": PAIRS[0], "1": PAIRS[1]}), PAIRS[:2]),
        (json.dumps({"a1": PAIRS[0], "a2": {"id": "mine", **PAIRS[1]}}), [PAIRS[0], {"id": "mine", **PAIRS[1]}]),
        (json.dumps({"a1": PAIRS[0], "a2": PAIRS[1]}), [{"id": "a1", **PAIRS[0]}, {"id": "a2", **PAIRS[1]}]),
        (json.dumps({"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "b"], ["c", None]]}),
         [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}]),
        (json.dumps({"schema": {"fields": []}, "data": [{"index": 0, **PAIRS[0]}]}), [{"index": 0, **PAIRS[0]}]),
        (json.dumps({"messages": TURNS, "tools": TOOLS * 2}), [{"messages": TURNS, "tools": TOOLS * 2}]),
        (json.dumps({"messages": TEXT, "tools": TOOLS}), [{"messages": TEXT, "tools": TOOLS}]),
        (json.dumps({"input_ids": [1, 2], "labels": [1, 2]}), [{"input_ids": [1, 2], "labels": [1, 2]}]),
        (json.dumps({"question": "q", "answer": "a", "refs": [{"text": "t"}]}),
         [{"question": "q", "answer": "a", "refs": [{"text": "t"}]}]),
        (json.dumps({"messages": TURNS, "meta": [{"text": "x"}]}), [{"messages": TURNS, "meta": [{"text": "x"}]}]),
    ],
)  # fmt: skip
def test_shapes_are_read_as_what_they_are(tmp_path: Path, text: str, expected: list[Any]) -> None:
    """Arrays of turns, wrapped lists and columns make records; a record with lists stays one."""
    assert read(tmp_path, "x.json", text) == expected
    if text.startswith("[") or "\n" in text:
        assert read(tmp_path, "x.jsonl", text) == expected


@pytest.mark.parametrize("count", [1, 3])
def test_pretty_objects_in_lines_are_read(tmp_path: Path, count: int) -> None:
    """One after the other, numbered as records, until one breaks."""
    text = "\n".join(json.dumps({"messages": TURNS}, indent=2) for _ in range(count))
    assert read(tmp_path, "x.jsonl", text) == [{"messages": TURNS}] * count
    assert read(tmp_path, "y.jsonl", text + '\n{"messages": [') == [{"messages": TURNS}] * count + [
        ("bad_json", count + 1)
    ]


def test_long_arrays_of_turns_follow_each_other(tmp_path: Path) -> None:
    """Also where the first line is longer than the head that is looked at."""
    long = [{"role": "user", "content": "x" * 70_000}, TURNS[1]]
    text = f"{json.dumps(long)}\n{json.dumps(TURNS)}\n[1]\n{json.dumps(TURNS, indent=1)}"
    turns = {"messages": TURNS}
    assert read(tmp_path, "x.jsonl", text) == [{"messages": long}, turns, ("not_an_object", 3), turns]


def test_a_bad_array_among_lines_is_one_rejected_record(tmp_path: Path) -> None:
    """Arrays of other things than turns are no records."""
    text = "\n".join(map(json.dumps, [TURNS, [1], [], ["a"], [PAIRS[0]], [[TURNS]], TURNS]))
    found = read(tmp_path, "x.jsonl", text)
    assert found == [{"messages": TURNS}, *(("not_an_object", line) for line in range(2, 7)), {"messages": TURNS}]


def test_a_conversation_that_breaks_is_rejected_whole(tmp_path: Path) -> None:
    """A part of its turns would be another conversation."""
    good = json.dumps({"messages": TURNS}) + "\n"
    (tmp_path / "a.jsonl").write_text(good)
    (tmp_path / "b.json").write_text(json.dumps(TURNS * 3, indent=1)[:-20])
    plan = plan_of(tmp_path / "w", tmp_path / "a.jsonl", tmp_path / "b.json")
    assert records_of(plan) == [{"messages": TURNS}, ("bad_json", 1)]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"train": PAIRS, "test": PAIRS}, "one object with several lists of records: 'train' and 'test'"),
        ({"prompt": ["a", "b"], "completion": ["c"]}, "different numbers of values: prompt has 2, completion has 1"),
    ],
)
def test_objects_that_can_be_read_in_two_ways_are_errors(tmp_path: Path, value: Any, says: str) -> None:
    """With what to do."""
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path, "x.json", json.dumps(value))
    assert caught.value.hint
    assert str(tmp_path / "x.json") in caught.value.message


def test_context_around_a_list_is_not_dropped(tmp_path: Path) -> None:
    """A system prompt or tools beside a list of records would be lost, so the object is not unwrapped."""
    for more in ({"system": "Be kind."}, {"tools": TOOLS}):
        with pytest.raises(DataError, match="cannot detect the format"):
            read(tmp_path, "x.json", json.dumps({**more, "data": PAIRS}))


def test_a_long_wrapped_list_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision needs its beginning only; at a break the records before it are kept."""
    monkeypatch.setattr(json_reader, "MAX_OBJECT_CHARS", 2000)
    monkeypatch.setattr(json_reader, "_WINDOW_CHARS", 700)
    text = json.dumps({"version": [1], "data": PAIRS, "more": {"a": 1}})
    assert read(tmp_path, "x.json", text, shard_bytes=2048) == PAIRS
    plan = plan_of(tmp_path / "work", tmp_path / "x.json", shard_bytes=2048)
    assert len(plan.shards) > 4
    assert [line for shard in read_all(plan) for line in shard.lines] == list(range(1, 301))
    assert read(tmp_path, "y.json", text[:9000])[:-1] == PAIRS[: len(read(tmp_path, "y.json", text[:9000])) - 1]
    assert read(tmp_path, "y.json", text[:9000])[-1][0] == "bad_json"
    with pytest.raises(DataError, match="several lists of records: 'data' and 'test'"):
        read(tmp_path, "z.json", json.dumps({"data": PAIRS, "test": PAIRS}))


def test_a_short_wrapped_list_that_breaks_keeps_its_records(tmp_path: Path) -> None:
    """As an array does."""
    text = json.dumps({"data": PAIRS})
    found = read(tmp_path, "x.json", text[: len(text) // 2])
    assert found[:-1] == PAIRS[: len(found) - 1]
    assert len(found) > 100
    assert found[-1] == ("bad_json", len(found))


def test_numbers_of_wrapped_records_are_copied(tmp_path: Path) -> None:
    """Long integers survive."""
    (record,) = read(
        tmp_path, "x.json", '{"data": [{"prompt": "p", "completion": "c", "n": 123456789012345678901234567890}]}'
    )
    assert record["n"] == 123456789012345678901234567890


def test_members_of_a_cut_object() -> None:
    """The first element of the list that is cut off is known."""
    text = json.dumps({"a": 1, "b": {"c": []}, "data": PAIRS})
    for size in (100, 1000, len(text)):
        found = first_members(text[:size])
        assert found["data"][0] == PAIRS[0]
        assert wrapper_keys(found) == ["data"]
    assert first_members('{"a": "cut o') == {}
    assert first_members("{}") == {}
    assert rows_of("x", {}) is None
