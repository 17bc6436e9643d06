"""Own columns on every way out: no null that the records did not have, and every null that they state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Features, Json, List, load_dataset

from qtune_service.export.run import export
from qtune_service.export.writers import Options
from qtune_service.ingest.schema import JSON_TYPE
from qtune_service.output.query.fields import samples_of
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.token_view import shown_samples
from tests.finished_outputs import chats, finished_output


def agent_records() -> list[dict[str, Any]]:
    """Return records whose calls have arguments of their own, and own columns with nulls of all kinds."""
    records: list[dict[str, Any]] = []
    for i, chat in enumerate(chats(24)):
        arguments: dict[str, Any] = [{"city": "Oslo"}, {"zone": "CET", "exact": None}, {}][i % 3]  # type: ignore[assignment]
        call = {"type": "function", "function": {"name": f"f{i % 3}", "arguments": arguments}}
        turns = [chat["messages"][0], {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}]
        tool = {"name": f"f{i % 3}", "parameters": {"properties": {name: {"type": "string"} for name in arguments}}}
        record: dict[str, Any] = {"id": chat["id"], "messages": [*turns, *chat["messages"][1:]] if i % 2 else turns}
        record |= {"tools": [{"type": "function", "function": tool}]} if i % 2 else {}
        record |= {"note": None} if i % 4 == 0 else {"note": "n"} if i % 4 == 1 else {}
        record |= {"always": None if i % 5 else i, "same": {"a": None if i % 2 else 1, "b": [None, i]}}
        records.append(record | {"mixed": [i, str(i), None, {"deep": [{"x": None}, {}]}][i % 4]})
    return records


@pytest.fixture(scope="module")
def records() -> dict[str, dict[str, Any]]:
    """Return the records by their ids."""
    return {record["id"]: record for record in agent_records()}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output of the records in several shards."""
    method = {"sample_keep_ratio": 0.8, "token_keep_ratio": 0.6}
    template = tmp_path_factory.mktemp("template") / "agents.jinja"
    template.write_text(TEMPLATE)
    return finished_output(
        tmp_path_factory.mktemp("agents"), agent_records(), prune_by=method, chat_template=str(template)
    )


TEMPLATE = """\
{% if tools %}{{ tools | tojson + '\n' }}{% endif %}\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}\
{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>' }}\
{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"""


def own(row: dict[str, Any], added: set[str]) -> dict[str, Any]:
    """Return a row without the columns that the job adds."""
    return {name: value for name, value in row.items() if name not in added}


ADDED = {"input_ids", "attention_mask", "labels", "loss_mask", "assistant_masks", "qtune"}


def test_json_lines_hold_the_records(
    agents: FinishedOutput, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Every own column of every kept record is what the input said, key by key."""
    export(agents.root, "jsonl", str(tmp_path), Options())
    found = [json.loads(line) for path in sorted(tmp_path.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert len(found) == agents.manifest["counts"]["kept"]
    assert [own(row, ADDED) for row in found] == [records[row["id"]] for row in found]


def test_turns_hold_the_records(agents: FinishedOutput, records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """ms-swift reads the record's own turns and tools, and `loss` beside them."""
    export(agents.root, "ms-swift", str(tmp_path), Options())
    found = [json.loads(line) for path in sorted(tmp_path.glob("*.jsonl")) for line in path.read_text().splitlines()]
    ids = [row["id"] for shard in agents.pruned_shards for row in agents.pruned(shard, ["id"]).to_pylist()]
    for sample_id, row in zip(ids, found, strict=True):
        row["messages"] = [own(turn, {"loss"}) for turn in row["messages"]]
        assert row == {name: records[sample_id][name] for name in ("messages", "tools") if name in records[sample_id]}


def test_analysis_files_hold_the_records(
    agents: FinishedOutput, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Kept and dropped samples have their own fields as they were."""
    export(agents.root, "analysis", str(tmp_path), Options())
    removed = json.loads((tmp_path / "stage1_removed.json").read_text())
    found = [row for rows in removed.values() for row in rows]
    found += json.loads((tmp_path / "stage2_final.json").read_text())
    assert {row["id"]: own(row, {"metadata"}) for row in found} == records


def test_samples_that_are_shown_hold_the_records(agents: FinishedOutput, records: dict[str, dict[str, Any]]) -> None:
    """REST and `qtune inspect` show own columns as they were."""
    shown = shown_samples(agents, samples_of(agents), np.arange(agents.num_samples))
    assert {sample.own["id"]: sample.own for sample in shown} == records


def test_a_repository_loads_as_the_records(
    agents: FinishedOutput, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """`datasets` reads the JSON type as objects with their own keys; a missing column is null, as in every table."""
    export(agents.root, "hub", str(tmp_path / "hub"), Options())
    data = load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    front = yaml.safe_load((tmp_path / "hub" / "README.md").read_text().split("---\n")[1])
    assert data.features == Features._from_yaml_list(front["dataset_info"]["features"])
    assert data.features["messages"] == List(Json())
    for row in data:
        expected = records[row["id"]]
        assert own(row, ADDED) == {name: expected.get(name) for name in own(row, ADDED)}


def test_product_files_name_their_json(agents: FinishedOutput) -> None:
    """pruned/ has Arrow's JSON type, which other readers know; scores/ keeps text, which SQL reads everywhere."""
    pruned = pq.read_schema(next(Path(agents.root, "pruned").glob("*.parquet")))
    assert str(pruned.field("messages").type.value_type) == "extension<arrow.json>"
    assert str(pruned.field("note").type) == "extension<arrow.json>"
    assert str(pruned.field("same").type.field("a").type) == "int64"
    assert str(ds.dataset(Path(agents.root, "scores")).schema.field("note").type) == "string"


def with_text(table: pa.Table) -> pa.Table:
    """Return a table with JSON text in strings, as earlier versions wrote it."""
    text = {b"qtune.encoding": b"json"}
    fields: list[pa.Field[Any]] = []
    for field in table.schema:
        if field.type == JSON_TYPE:
            fields.append(pa.field(field.name, pa.string(), metadata=text))
        elif field.type == pa.list_(JSON_TYPE):
            item: pa.Field[Any] = pa.field("element", pa.string(), metadata=text)
            fields.append(pa.field(field.name, pa.list_(item)))
        else:
            fields.append(field.remove_metadata())
    return table.cast(pa.schema(fields))


def test_outputs_of_earlier_versions_are_read(
    agents: FinishedOutput, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Their pruned/ holds JSON text in strings. Exports read it, and write Arrow's JSON type."""
    old = FinishedOutput(str(tmp_path / "old"))
    shutil.copytree(agents.root, old.root)
    for path in Path(old.root, "pruned").glob("*.parquet"):
        pq.write_table(with_text(pq.read_table(path)), path)
    export(old.root, "jsonl", str(tmp_path / "jsonl"), Options())
    lines = [line for path in sorted((tmp_path / "jsonl").glob("*.jsonl")) for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    assert [row["messages"] for row in found] == [records[row["id"]]["messages"] for row in found]
    export(old.root, "hub", str(tmp_path / "hub"), Options())
    data = load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["messages"] == List(Json())
    assert [row["messages"] for row in data] == [records[row["id"]]["messages"] for row in data]
