"""Real datasets through every template: encoded as expected, or refused for a known reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.ingest.formats import detect_format, to_conversation
from qtune_service.ingest.records import Conversation, RecordError
from qtune_service.tokenize.encoder import Encoded, Encoder
from tests.unit.tokenize.chat_models import SHAPES, expected_text, make_encoder, save_tokenizer

FILES = {
    "gsm8k_train.jsonl": "prompt_completion",
    "alpaca_en_demo.json": "alpaca",
    "fastchat_dummy_conversation.json": "sharegpt",
    "glaive_toolcall_en_demo.json": "sharegpt",
}

EVERY_ROW = {"marked", "llama3", "mistral_tools", "qwen3"}  # of the others, which render alike, each tenth


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """One encoder a template."""
    folder = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return {name: make_encoder(folder, shape.source) for name, shape in SHAPES.items()}


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file."""
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    assert isinstance(rows, list)
    return rows


def reasons(outcomes: list[Encoded | RecordError]) -> Counter[str]:
    """Refusals by reason code."""
    return Counter(outcome.reason_code for outcome in outcomes if isinstance(outcome, RecordError))


def trained_texts(encoder: Encoder, outcomes: list[Encoded | RecordError]) -> list[str]:
    """Return the text that each mask selects."""
    samples = [outcome.sample for outcome in outcomes if isinstance(outcome, Encoded)]
    ids = [sample.input_ids[sample.loss_mask == 1].tolist() for sample in samples]
    return encoder._backend.decode_batch(ids, skip_special_tokens=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("file", FILES)
def test_formats_of_real_files(file: str, shared_dir: Path) -> None:
    """Detected from the first records."""
    assert detect_format(read(shared_dir / "data" / file)[:32]) == FILES[file]


def test_message_trees_are_no_format(shared_dir: Path) -> None:
    """A tree of replies holds many conversations; which to train on is not ours to guess."""
    assert detect_format(read(shared_dir / "data" / "oasst_en_100_tree.jsonl")) is None


@pytest.mark.parametrize("file", ["gsm8k_train.jsonl", "alpaca_en_demo.json", "fastchat_dummy_conversation.json"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_trains_its_answers(file: str, shape: str, shared_dir: Path, encoders: dict[str, Encoder]) -> None:
    """No row is refused, and each mask selects the answers to the letter."""
    rows, name = read(shared_dir / "data" / file), FILES[file]
    rows = rows if shape in EVERY_ROW else rows[::10]
    outcomes = encoders[shape].encode_batch(rows, name)  # type: ignore[arg-type]
    assert reasons(outcomes) == {}
    conversations = [to_conversation(row, name) for row in rows]  # type: ignore[arg-type]
    wanted = [expected_text(SHAPES[shape], c.messages) for c in conversations if isinstance(c, Conversation)]
    assert trained_texts(encoders[shape], outcomes) == wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tool_conversation_trains_answers_and_calls(
    shape: str, shared_dir: Path, encoders: dict[str, Encoder]
) -> None:
    """Calls and answers are trained, results and questions are not, whatever the template knows."""
    rows = read(shared_dir / "data" / "glaive_toolcall_en_demo.json")
    outcomes = encoders[shape].encode_batch(rows, "sharegpt")
    assert reasons(outcomes) == {}
    for row, text in zip(rows, trained_texts(encoders[shape], outcomes), strict=True):
        turns = row["conversations"]
        answers = [t["value"].strip() for t in turns if t["from"] == "gpt"]
        calls = [json.loads(t["value"])["name"] for t in turns if t["from"] == "function_call"]
        asked = [t["value"].strip() for t in turns if t["from"] in {"human", "observation"} and len(t["value"]) > 40]
        assert all(answer in text for answer in answers)
        assert all(call in text for call in calls)
        assert not any(question in text for question in asked)


def test_a_real_model_without_a_template(shared_dir: Path) -> None:
    """GSM8K through a SentencePiece-like tokenizer; rows over its 512 tokens are refused and no others."""
    model = ModelSpec(name=str(shared_dir / "models" / "stories260K"))
    encoder = Encoder(model, InputSpec(paths=("x",)), max_model_len=10**6, vocab_size=512)
    rows = read(shared_dir / "data" / "gsm8k_train.jsonl")
    whole = encoder.encode_batch(rows, "prompt_completion")
    assert reasons(whole) == {}
    assert trained_texts(encoder, whole) == [row["answer"] + "</s>" for row in rows]
    sizes = [len(outcome.sample.input_ids) for outcome in whole if isinstance(outcome, Encoded)]
    assert sum(size > 512 for size in sizes) == 924
    limited = Encoder(model, InputSpec(paths=("x",)), max_model_len=512).encode_batch(rows[:1000], "prompt_completion")
    assert [size > 512 for size in sizes[:1000]] == [isinstance(outcome, RecordError) for outcome in limited]
    assert set(reasons(limited)) == {"too_long"}
