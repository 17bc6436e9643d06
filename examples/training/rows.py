"""Tokenize the conversations of the demo for the examples: input_ids, and labels of the assistant turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parent.parent / "demo"
MODEL = str(DEMO / "model")


def demo_rows(tokenizer: Any, num_rows: int = 256) -> dict[str, list[list[int]]]:
    """Return the first rows of the data of the demo."""
    with (DEMO / "data.jsonl").open(encoding="utf-8") as lines:
        talks = [json.loads(line)["messages"] for line, _ in zip(lines, range(num_rows), strict=False)]
    made = tokenizer.apply_chat_template(
        talks, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, padding=False
    )
    ids, masks = made["input_ids"], made["assistant_masks"]
    labels = [
        [t if on else -100 for t, on in zip(row, mask, strict=True)] for row, mask in zip(ids, masks, strict=True)
    ]
    return {"input_ids": ids, "labels": labels}
