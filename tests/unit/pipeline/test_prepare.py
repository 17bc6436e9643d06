"""A spec must mean the same on every node."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtune_service.pipeline.prepare import portable
from qtune_service.spec_files import parse_spec


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders get their full path; hub ids and URIs are left alone; a template file becomes its text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    body = {
        "input": {"paths": ["d.jsonl"], "chat_template": "t.jinja"},
        "model": {"name": "model"},
        "output": {"path": "o"},
    }
    spec = portable(parse_spec(body))
    assert (spec.model.name, spec.output.path) == (str(tmp_path / "model"), str(tmp_path / "o"))
    assert spec.input.chat_template == "{{ messages[0].content }}"
    far = portable(parse_spec({**body, "model": {"name": "org/model"}, "output": {"path": "s3://b/o"}}))
    assert (far.model.name, far.output.path) == ("org/model", "s3://b/o")
    assert portable(spec) == spec
