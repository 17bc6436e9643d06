"""pipeline/preview.py: the first samples are those of the job, and what is wrong with them is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import ModelError
from qtune_service.ingest.records import HINTS
from qtune_service.pipeline.preview import SHOWN_TOKENS, Preview, preview
from qtune_service.spec_files import parse_spec
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, write_jsonl


def look(path: Path, count: int = 3, model: str = DEMO_MODEL, **more: Any) -> Preview:
    """Preview a file with the demo model."""
    body = {"input": {"paths": [str(path)], **more}, "model": {"name": model}, "output": {"path": "nowhere"}}
    return preview(parse_spec(body), count)


def chat(answer: str, question: str = "What is a dalox?") -> dict[str, Any]:
    """Return a record in messages form."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_samples_show_what_is_trained_on() -> None:
    """Text, tokens and mask belong together; the trained tokens are the answer and its end."""
    found = look(DEMO_DATA)
    assert (len(found.samples), found.rejected, found.warnings) == (3, [], [])
    for sample, line in zip(found.samples, DEMO_DATA.read_text().splitlines(), strict=False):
        assert sample.text == "".join(sample.tokens)
        assert len(sample.tokens) == len(sample.token_ids) == len(sample.loss_mask) == sample.num_tokens
        trained = "".join(text for text, mask in zip(sample.tokens, sample.loss_mask, strict=True) if mask)
        assert trained == json.loads(line)["messages"][-1]["content"] + "<|im_end|>"
        assert sample.num_trained == sum(sample.loss_mask)
    assert [sample.line for sample in found.samples] == [1, 2, 3]


def test_rejected_records_have_a_reason_and_a_hint(tmp_path: Path) -> None:
    """Those before the last sample; and a job that would fail over them is warned of."""
    bad = [chat(""), {"messages": [{"role": "user", "content": "alone"}]}, chat("x" * 9000)]
    data = write_jsonl(tmp_path / "a.jsonl", [chat("It lives."), *bad, chat("Yes."), chat("")])
    found = look(data, 2)
    assert len(found.samples) == 2
    assert [one.reason for one in found.rejected] == ["empty_response", "no_assistant_turn", "too_long"]
    assert all(one.hint and one.detail and one.record for one in found.rejected)
    assert [one.line for one in found.rejected] == [2, 3, 4]
    assert any("3 of the first 5 records are rejected" in warning for warning in found.warnings)


def test_how_the_data_is_read(tmp_path: Path) -> None:
    """The format of each file, the use of each column, and what the samples do not contain."""
    rows = [chat("one") | {"id": 1, "system": "S", "passage": "needed"}, chat("two") | {"id": 2}]
    found = look(write_jsonl(tmp_path / "a.jsonl", rows))
    (source,) = found.sources
    assert (source.source, source.format) == (str(tmp_path / "a.jsonl"), "messages")
    assert source.columns == {
        "messages": "turns of the conversation",
        "id": "own column",
        "system": "system prompt",
        "passage": "not read, counted in a warning",
    }
    assert [w for w in found.warnings if "passage" in w] == [
        "1 of the first 2 records: the column `passage` is not read, so the prompt does not contain it."
    ]


def test_when_nothing_can_be_used_it_says_so(tmp_path: Path) -> None:
    """Not an error: the reasons are the answer. One reason is not repeated."""
    found = look(write_jsonl(tmp_path / "a.jsonl", [chat("")] * 500))
    assert (found.samples, [record.num_more for record in found.rejected]) == ([], [0, 0, 197])
    assert any("None of the first 200 records can be used" in warning for warning in found.warnings)


def test_the_middle_of_a_long_sample_is_left_out(tmp_path: Path) -> None:
    """Its beginning and its end are shown, and its counts are of all of it."""
    tokens = {"input_ids": list(range(3, 900)) * 3, "loss_mask": [0] + [1] * 2690}
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    (sample,) = look(write_jsonl(tmp_path / "a.jsonl", [tokens]), model=str(model)).samples
    assert (sample.num_tokens, sample.num_trained, sample.num_left_out) == (2691, 2690, 2691 - 2 * SHOWN_TOKENS)
    assert sample.token_ids == tokens["input_ids"][:SHOWN_TOKENS] + tokens["input_ids"][-SHOWN_TOKENS:]
    assert len(sample.tokens) == len(sample.loss_mask) == 2 * SHOWN_TOKENS


def test_a_tokenizer_without_a_template_is_told(tmp_path: Path) -> None:
    """Plain text is rarely what a model is trained with."""
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    found = look(DEMO_DATA, model=str(model))
    assert found.samples
    assert any("no chat template" in warning for warning in found.warnings)


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    """With what to give."""
    with pytest.raises(ModelError, match="does not exist") as caught:
        look(DEMO_DATA, model=str(tmp_path / "none"))
    assert caught.value.hint


def test_every_reason_has_a_hint() -> None:
    """Those that records.py lists, and those of lines that are no records."""
    text = (REPO / "qtune_service" / "ingest" / "records.py").read_text()
    listed = text.partition("Reason codes:")[2].partition('"""')[0]
    reasons = {word.strip(",") for line in listed.strip().splitlines() for word in line.split() if "_" in word}
    assert len(reasons) > 20
    assert reasons | {"bad_json", "not_utf8", "not_an_object"} <= set(HINTS)
