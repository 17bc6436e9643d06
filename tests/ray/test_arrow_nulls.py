"""`qtune prune` on the field cases of padded and JSON-typed records: every output holds the records as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from qtune_service.export.run import export
from qtune_service.export.writers import Options
from tests.jobs import DEMO_MODEL, qtune

ADDED = {"input_ids", "attention_mask", "labels", "loss_mask", "assistant_masks", "qtune"}
TEMPLATE = """\
{% if tools %}{{ tools | tojson + '\n' }}{% endif %}\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}\
{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>' }}\
{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"""
CASES = {
    "data.jsonl": ["01-arrow-null-padding/data.jsonl"],
    "data.parquet": ["01-arrow-null-padding/data.parquet"],
    "union.parquet": ["01-arrow-null-padding/union.parquet"],
    "json types": ["02-hf-json-type/messages.parquet", "02-hf-json-type/tools.parquet"],
    "mix": ["02-hf-json-type/mix"],
}

PADDED = ("data.parquet", "union.parquet")
"""Cases whose pruned/ keeps the padded types of their Parquet files."""
SLOW = ("union.parquet", "json types")


def without_nulls(value: Any) -> Any:
    """Return a value without the null fields of its objects."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def given_records(paths: list[Path], cache: Path) -> list[dict[str, Any]]:
    """Return the records of an input as `datasets` and the JSON parser read them, without padding."""
    records: list[dict[str, Any]] = []
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.suffix == ".jsonl":
                records += map(json.loads, file.read_text().splitlines())
            else:
                data = load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(cache))
                records += map(without_nulls, data)
    return records


def json_lines(folder: Path) -> list[dict[str, Any]]:
    """Return all rows of JSON lines files."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_records_are_pruned_and_exported_as_they_were(name: str, shared_dir: Path, tmp_path: Path) -> None:
    """pruned/, all exports and the analysis files have the keys and nulls of the input, and the output is valid."""
    paths = [shared_dir / "field_cases" / part for part in CASES[name]]
    if not all(path.exists() for path in paths):
        pytest.skip("needs ../shared/field_cases")
    records = given_records(paths, tmp_path / "cache")
    out, template = tmp_path / "out", tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    flags = ("--engine", "reference", "--sample-keep-ratio", "1.0", "--chat-template", str(template))
    done = qtune("prune", *paths, "--model", DEMO_MODEL, "--output", out, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    checker = shared_dir / "tools" / "check_output.py"
    checked = subprocess.run([sys.executable, str(checker), str(out)], capture_output=True, text=True, check=False)
    assert checked.stdout.endswith("\n0 checks failed\n"), checked.stdout + checked.stderr

    pruned = load_dataset("parquet", data_dir=str(out / "pruned"), split="train", cache_dir=str(tmp_path / "cache"))
    plain = [{name: value for name, value in row.items() if name not in ADDED} for row in pruned]
    assert [without_nulls(row) for row in plain] == [without_nulls(record) for record in records]
    if name not in PADDED:
        assert all(row | record == row for row, record in zip(plain, records, strict=True))

    for form in ("jsonl", "hub", "analysis", *(["ms-swift"] if "messages" in records[0] else [])):
        export(str(out), form, str(tmp_path / form), Options())
    assert [{k: v for k, v in row.items() if k not in ADDED} for row in json_lines(tmp_path / "jsonl")] == records
    hub = load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [{k: v for k, v in row.items() if k not in ADDED} for row in hub] == plain
    final = json.loads((tmp_path / "analysis" / "stage2_final.json").read_text())
    own = [{k: v for k, v in row.items() if k != "metadata" and (k != "id" or "id" in records[0])} for row in final]
    assert own == records
    for row, record in zip(json_lines(tmp_path / "ms-swift"), records, strict=False):
        row["messages"] = [{k: v for k, v in turn.items() if k != "loss"} for turn in row["messages"]]
        assert row == {key: record[key] for key in ("messages", "tools") if key in record}
    assert "null" not in "".join(path.read_text() for path in (tmp_path / "jsonl").iterdir())
