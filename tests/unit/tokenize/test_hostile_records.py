"""Records of which any part is of another type, missing or repeated: each is a sample or a rejection, never a crash."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import FormatName
from qtune_service.ingest.formats import detect_format
from qtune_service.ingest.records import HINTS, RecordError
from qtune_service.tokenize.encoder import Encoded
from tests.unit.tokenize.chat_models import CHATML, LLAMA3, MISTRAL_TOOLS, QWEN3, make_encoder

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
SEEDS: list[dict[str, Any]] = [
    {
        "system": "S",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "documents": [{"text": "D"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "w?"}]},
            {"role": "assistant", "content": None, "reasoning": "think", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "3"},
            {"role": "assistant", "content": "3 C", "weight": 1},
        ],
    },
    {"system": [{"text": "S"}], "conversations": [{"from": "Human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"instruction": "I", "input": "X", "output": "O", "history": [["a", "b"]], "system": "S", "label": True},
    {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1], "position_ids": [0, 1, 2]},
    {
        "messages": [
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": "Wrong. Right.",
                "training_detail": [{"begin_offset": 0, "end_offset": 5}],
            },
        ]
    },
]
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3.5, 10**30, "", " ", "x", "[", "[]", "{}", '[{"role": "user"}]', "null", "\ud7ff"),
    *([], [[]], [None], ["x"], {}, {"role": {}}, {"": None}, {"type": ["text"]}, [{"type": "text"}], "{{ 1 }}", "</s>"),
    *("{% raw %}", "<|im_end|>", {"text": 1}, {"function": "f"}, {"content": {"content": "x"}}, [1, 2, 3]),
)
KEYS = ("role", "content", "text", "type", "tools", "images", "name", "id")
FORMATS: tuple[FormatName, ...] = ("messages", "sharegpt", "alpaca", "prompt_completion", "tokenized")
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL_TOOLS, "qwen3": QWEN3}
NUM_RECORDS = 10_000


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in a record."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in items:
        yield value, key
        yield from places(item)


def mutated(record: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a record with one to three changes anywhere."""
    out: dict[str, Any] = copy.deepcopy(record)
    for _ in range(rng.randint(1, 3)):
        found = list(places(out))
        if not found:
            break
        container, key = rng.choice(found)
        kind = rng.randrange(5)
        if kind == 0 and isinstance(container, dict):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(("role", "content", "text", "type", "tools", "images", "name", "id"))] = container.pop(
                key
            )
        elif kind == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif kind == 3:
            container[key] = json.dumps(container[key])
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    return out


def field_records(shared: Path) -> list[dict[str, Any]]:
    """Return the records of the field cases, where they are there."""
    lines = (line for path in sorted(shared.glob("field_cases/*/*.jsonl")) for line in path.read_text().splitlines())
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_no_record_is_lost(folder: Path, template: str) -> None:
    """10,000 records over four templates: one outcome each, and every reason has a hint."""
    rng = random.Random(17)
    encoder = make_encoder(folder, TEMPLATES[template], max_model_len=4096)
    seeds = SEEDS + field_records(Path(__file__).parents[4] / "shared")
    by_format: dict[FormatName, list[dict[str, Any]]] = {}
    for number in range(NUM_RECORDS // 4):
        record = mutated(seeds[number % len(seeds)], rng)
        other: FormatName = rng.choice(FORMATS)
        by_format.setdefault(detect_format([record]) or other, []).append(record)
    num_good = 0
    for name, records in by_format.items():
        outcomes = encoder.encode_batch(records, name)
        assert len(outcomes) == len(records)
        for outcome in outcomes:
            if isinstance(outcome, RecordError):
                assert outcome.reason_code in HINTS, outcome
                assert outcome.detail
            else:
                assert isinstance(outcome, Encoded)
                assert outcome.sample.loss_mask.any()
                num_good += 1
    assert num_good > NUM_RECORDS // 40
