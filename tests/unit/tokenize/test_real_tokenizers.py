"""Masks with the tokenizer and the template of a real pretrained model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.ingest.formats import detect_format
from qtune_service.tokenize.encoded_batch import NO_ENDINGS, Encoded
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.trl_templates import trl_templates
from tests.real_tokenizers import gemma3, smollm2

END = "<|im_end|>"
FILES = ("gsm8k_test.jsonl", "alpaca_en_demo.json", "fastchat_dummy_conversation.json")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Return an encoder with SmolLM2's own template."""
    return Encoder(ModelSpec(name=str(smollm2())), InputSpec(paths=("x",)), max_model_len=8192)


def trained_runs(encoder: Encoder, record: dict[str, Any]) -> list[str]:
    """Return the text of each run of trained tokens."""
    sample = encoder.encode(record, detect_format([record]) or "auto").sample
    runs: list[list[int]] = []
    for i, (token, trained) in enumerate(zip(sample.input_ids.tolist(), sample.loss_mask.tolist(), strict=True)):
        if trained:
            if not sample.loss_mask[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [encoder.decode(run) for run in runs]


CONTENTS = (
    "Beta.",
    "  two  spaces",
    "naïve 漢字 🙂",
    "<think>a</think>b",
    "Say <|im_end|> twice",
    "a\n\nb",
    "1",
    "Hi Hi Hi",
)


@pytest.mark.parametrize("answer", CONTENTS)
def test_each_answer_with_its_end_and_nothing_else(encoder: Encoder, answer: str) -> None:
    """In one and in several turns, with and without a system turn.

    A blank at the start may share its token with the newline of the header, which is not trained.
    """
    turns = [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}]
    for head in ([], [{"role": "system", "content": "S"}]):
        for count in (1, 3):
            runs = trained_runs(encoder, {"messages": [*head, *turns * count]})
            assert [run.lstrip() for run in runs] == [answer.lstrip() + END] * count


@pytest.mark.parametrize("answer", CONTENTS)
@pytest.mark.parametrize("template", ["trl:gemma3", "vendor"])
def test_gemma_with_its_templates(template: str, answer: str) -> None:
    """TRL's training template marks the newline behind the end of the turn; the vendor's has no markers."""
    encoder = gemma_encoder(template)
    turns = [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}]
    end = "<end_of_turn>\n" if template.startswith("trl:") else "<end_of_turn>"
    runs = trained_runs(encoder, {"messages": turns * 2})
    assert runs == [answer.strip() + end] * 2  # the template trims


@cache
def gemma_encoder(template: str) -> Encoder:
    """Return an encoder with Gemma's tokenizer and a template that TRL ships."""
    if "gemma3" not in trl_templates():
        pytest.skip("needs TRL, which ships the templates")
    source = trl_templates()["gemma3"].read_text() if template == "vendor" else template
    spec = InputSpec(paths=("x",), chat_template=source)
    return Encoder(ModelSpec(name=str(gemma3())), spec, max_model_len=8192)


def test_tools_and_calls(encoder: Encoder) -> None:
    """The template has no tools: their fallbacks are trained like answers, results are not."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "R"}, {"role": "assistant", "content": "A"}]
    assert trained_runs(encoder, {"messages": turns, "tools": [call["function"]]}) == [
        '{"name": "f", "arguments": {"x": 1}}' + END,
        "A" + END,
    ]


@pytest.mark.parametrize("file", FILES)
def test_real_data_ends_in_the_stop_token(encoder: Encoder, shared_dir: Path, file: str) -> None:
    """Every trained run of every sample ends in the model's stop token, so there is no warning."""
    text = (shared_dir / "data" / file).read_text()
    rows = json.loads(text) if file.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    batch = encoder.encode_columns(rows[:300], detect_format(rows[:20]) or "auto")
    assert {problem.reason_code for problem in batch.problems.values()} <= {"too_long", "empty_response"}
    assert batch.endings.num_spans == batch.endings.num_stopped > 0
    assert all(isinstance(outcome, Encoded) for i, outcome in enumerate(batch.outcomes()) if i not in batch.problems)
    assert encoder.stop_warning(batch.endings) is None
    assert encoder.stop_warning(NO_ENDINGS) is None
