"""ms-swift: the flag of each turn says whether stage 2 left any of its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qtune_service.errors import DataError
from qtune_service.export.run import export
from qtune_service.export.trainers import TurnFlags, surviving_runs
from qtune_service.export.writers import Options
from qtune_service.ingest.records import ColumnNames
from qtune_service.output.columns import ragged
from tests.finished_outputs import chats, finished_output
from tests.jobs import rows, write_jsonl


def lines(folder: Path) -> list[dict[str, Any]]:
    """All rows of JSONL files."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_conversations_come_out_as_they_went_in_with_flags(out: Path, tmp_path: Path) -> None:
    """Roles and contents are the record's own; each assistant turn has `loss`, no other turn has."""
    done = export(str(out), "ms-swift", str(tmp_path), Options())
    records = {chat["id"]: chat["messages"] for chat in chats(120)}
    found = lines(tmp_path)
    kept = [row["id"] for row in rows(out / "pruned")]
    assert [[{k: m[k] for k in ("role", "content")} for m in row["messages"]] for row in found] == [
        records[sample_id] for sample_id in kept
    ]
    assert all(("loss" in m) == (m["role"] == "assistant") for row in found for m in row["messages"])
    assert all(isinstance(m["loss"], bool) for row in found for m in row["messages"] if "loss" in m)
    assert "single tokens" in done.notes[0]


def test_a_turn_that_lost_all_its_tokens_is_not_trained(tmp_path: Path) -> None:
    """Computed anew from the masks: the k-th run of the mask before stage 2 is the k-th turn."""
    rare = {"sample_keep_ratio": 0.9, "token_keep_ratio": 0.05, "keep_end_of_turn": False}
    finished = finished_output(tmp_path, chats(40), prune_by=rare)
    export(finished.root, "ms-swift", str(tmp_path / "x"), Options())
    before = {row["sample_id"]: row["loss_mask"] for row in rows(tmp_path / "out" / "scores")}
    flags = [[m["loss"] for m in row["messages"] if "loss" in m] for row in lines(tmp_path / "x")]
    expected = []
    for row in rows(tmp_path / "out" / "pruned"):
        runs, alive = before[row["qtune"]["sample_id"]], []
        for i, trained in enumerate(runs):
            if trained and not runs[i - 1]:
                alive.append(False)
            if trained:
                alive[-1] |= bool(row["loss_mask"][i])
        expected.append(alive)
    assert flags == expected
    assert not all(map(all, flags)), "at least one turn of the test data lost all its tokens"


def test_turns_that_the_record_left_out_stay_out(tmp_path: Path) -> None:
    """A record's own flag is kept, and its turn takes no part in the count of runs."""
    records = chats(40)
    for record in records:
        record["messages"][1]["train"] = len(record["messages"]) == 2  # the first answer counts only where it is alone
    done = finished_output(tmp_path, records, prune_by={"sample_keep_ratio": 0.9})
    export(done.root, "ms-swift", str(tmp_path / "x"), Options())
    for row in lines(tmp_path / "x"):
        answers = [m for m in row["messages"] if m["role"] == "assistant"]
        assert answers[0]["loss"] is (len(answers) == 1)


def test_tools_come_along(tmp_path: Path) -> None:
    """Templates need them, and ms-swift reads the column of that name."""
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    records = [chat | {"tools": [tool]} if i % 2 else chat for i, chat in enumerate(chats(20))]
    done = finished_output(tmp_path, records, prune_by={"sample_keep_ratio": 1.0})
    export(done.root, "ms-swift", str(tmp_path / "x"), Options())
    assert [row.get("tools") for row in lines(tmp_path / "x")] == [r.get("tools") for r in records]


def test_records_without_messages_are_refused(tmp_path: Path) -> None:
    """With the names of what they have instead."""
    records = [{"instruction": f"Say {i}.", "output": f"It is {i}, and so on."} for i in range(12)]
    done = finished_output(tmp_path, records, prune_by={"sample_keep_ratio": 0.5})
    with pytest.raises(DataError, match="these have instruction, output"):
        export(done.root, "ms-swift", str(tmp_path / "x"), Options())


def test_records_of_two_kinds_are_refused_with_a_count(tmp_path: Path) -> None:
    """Some with messages, some without: before anything is written."""
    others = [{"prompt": f"Say {i}.", "completion": f"It is {i}, and so on."} for i in range(6)]
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "b" / "others.jsonl", others)
    done = finished_output(tmp_path, chats(6), prune_by={"sample_keep_ratio": 1.0}, more=(tmp_path / "b",))
    with pytest.raises(DataError, match="6 kept records have no `messages`"):
        export(done.root, "ms-swift", str(tmp_path / "x"), Options())
    assert not (tmp_path / "x").exists()


def test_turns_that_cannot_be_told_apart_keep_their_loss_and_are_counted() -> None:
    """Two answers in one run, of which some tokens went: nobody knows whose; both are trained."""
    said = [{"role": role, "content": "a"} for role in ("user", "assistant", "assistant")]
    flags = TurnFlags()
    assert [m.get("loss") for m in flags.flagged(said, [True])] == [None, True, True]
    assert flags.unclear == 0, "nothing was lost"
    assert [m.get("loss") for m in flags.flagged(said, [False])] == [None, True, True]
    assert flags.unclear == 1
    assert [m.get("loss") for m in flags.flagged(said, [False, True])] == [None, False, True]
    assert flags.unclear == 1


def test_runs_of_neighbouring_rows_do_not_touch() -> None:
    """A row that ends in a run, and one that would begin with one (its first token has no prediction)."""
    before, after = ([[0, 1, 1], [1, 1, 0, 1], [0, 0]], [[0, 0, 0], [0, 1, 0, 0], [0, 0]])
    columns = (pa.chunked_array([pa.array(lists, pa.list_(pa.int8()))]) for lists in (before, after))
    alive = surviving_runs(*map(ragged, columns))
    assert [row.tolist() for row in alive.rows()] == [[False], [True, False], []]
    assert np.array_equal(alive.offsets, [0, 1, 3, 3])


def test_turns_in_json_text_come_out_as_objects() -> None:
    """A column may hold JSON text of all turns, or of each one; nulls that they state stay."""
    said: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "n": None}]
    expected = [said[0], said[1] | {"loss": True}]
    assert TurnFlags().flagged(json.dumps(said), [True]) == expected
    assert TurnFlags().flagged([json.dumps(turn) for turn in said], [True]) == expected


def test_roles_have_the_names_that_the_job_gave() -> None:
    """A turn of a role that the job maps to assistant is trained."""
    said = [{"role": "user", "content": "q"}, {"role": "helper", "content": "a"}]
    flags = TurnFlags(ColumnNames(roles={"helper": "assistant"}))
    assert flags.flagged(said, [False]) == [said[0], said[1] | {"loss": False}]


def test_stated_nulls_beside_missing_messages_are_counted(tmp_path: Path) -> None:
    """Records without messages, or with null there, are refused with their number."""
    others = [
        {"prompt": f"Say {i}.", "completion": f"It is {i}, and so on."} | ({"messages": None} if i % 2 else {})
        for i in range(6)
    ]
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "b" / "others.jsonl", others)
    done = finished_output(tmp_path, chats(6), prune_by={"sample_keep_ratio": 1.0}, more=(tmp_path / "b",))
    with pytest.raises(DataError, match="6 kept records have no `messages`"):
        export(done.root, "ms-swift", str(tmp_path / "x"), Options())
