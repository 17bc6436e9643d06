"""tokenize/encoder.py: tool calls, their results, and reasoning."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtune_service.ingest.records import RecordError
from tests.unit.tokenize.chat_models import (
    CALL,
    QWEN3,
    SHAPES,
    Encoders,
    make_encoder,
    reasoning_record,
    tool_record,
    trained_text,
)

PLAIN_CALL = '{"name": "area", "arguments": {"w": 3, "unit": "cm²"}}'
TRAINED_WITH_TOOLS = {
    "chatml": PLAIN_CALL + "<|im_end|>It is 9.<|im_end|>Yes.<|im_end|>",
    "marked": PLAIN_CALL + "<|im_end|>It is 9.<|im_end|>Yes.<|im_end|>",
    "llama3": PLAIN_CALL.replace("arguments", "parameters") + "<|eom|>It is 9.<|eot|>Yes.<|eot|>",
    "mistral": f" {PLAIN_CALL}</s> It is 9.</s> Yes.</s>",
    "mistral_tools": f'[TOOL_CALLS] [{PLAIN_CALL[:-1]}, "id": "call00001"}}]</s> It is 9.</s> Yes.</s>',
    "qwen3": f"<tool_call>\n{PLAIN_CALL}\n</tool_call><|im_end|>It is 9.<|im_end|>"
    "<think>\n\n</think>\n\nYes.<|im_end|>",
    "plain": PLAIN_CALL + "</s>It is 9.</s>Yes.</s>",
}


@pytest.mark.parametrize("shape", TRAINED_WITH_TOOLS)
def test_tools_calls_and_results_reach_every_template(shape: str, encoders: Encoders) -> None:
    """A call is trained, a result is not, and descriptions of tools are never lost."""
    encoder = encoders[shape]
    sample = encoder.encode(tool_record(), "messages").sample
    assert trained_text(encoder, sample) == TRAINED_WITH_TOOLS[shape]
    prompt = encoder.decode(sample.input_ids[sample.loss_mask == 0].tolist())
    assert "Area of a square" in prompt
    assert "area" in prompt
    assert "9}" in prompt


@pytest.mark.parametrize("shape", ["chatml", "qwen3", "mistral", "plain", "mistral_tools", "marked"])
def test_parallel_calls_with_consecutive_results(shape: str, encoders: Encoders) -> None:
    """Two calls in one turn and their two results keep the mask right."""
    record = tool_record()
    record["messages"][1]["tool_calls"] = [CALL, CALL]
    record["messages"].insert(3, {"role": "tool", "content": '{"area": 99}'})
    encoder = encoders[shape]
    sample = encoder.encode(record, "messages").sample
    text = trained_text(encoder, sample)
    assert text.count('"name": "area"') == 2
    assert "99}" not in text
    assert "99}" in encoder.decode(sample.input_ids.tolist())
    assert text.endswith(TRAINED_WITH_TOOLS[shape].partition("]</s>" if shape == "mistral_tools" else PLAIN_CALL)[2])


def test_llama_template_that_refuses_parallel_calls_rejects_the_record(encoders: Encoders) -> None:
    """What a template raises becomes the reason."""
    record = tool_record()
    record["messages"][1]["tool_calls"] = [CALL, CALL]
    with pytest.raises(RecordError, match=r"template_error.*only single tool calls"):
        encoders["llama3"].encode(record, "messages")


def test_reasoning_is_trained_where_the_template_shows_it(encoders: Encoders) -> None:
    """Qwen3 drops the reasoning of earlier turns, and the mask follows the text."""
    record = reasoning_record()
    sample = encoders["qwen3"].encode(record, "messages").sample
    expected = "2<|im_end|><think>\nTwo and two.\n</think>\n\n4<|im_end|>"
    assert trained_text(encoders["qwen3"], sample) == expected
    notes = encoders["qwen3"].encode_columns([record], "messages").notes
    assert notes == {"the chat template drops the reasoning before the last question": 1}
    inline = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
    inline[1]["content"] = "<think>\nOne and one.\n</think>\n\n2"
    inline[3]["content"] = "<think>\nTwo and two.\n</think>\n\n4"
    assert (
        encoders["qwen3"].encode({"messages": inline}, "messages").sample.input_ids.tolist()
        == sample.input_ids.tolist()
    )


def test_reasoning_before_tool_calls_of_an_earlier_round(encoders: Encoders) -> None:
    """History that the template writes anew is found by rendering with other words, not by prefixes."""
    record = tool_record()
    record["messages"][1]["reasoning_content"] = "I should call."
    record["messages"][3]["reasoning_content"] = "It said nine."
    sample = encoders["qwen3"].encode(record, "messages").sample
    assert trained_text(encoders["qwen3"], sample) == TRAINED_WITH_TOOLS["qwen3"]
    record["messages"] = record["messages"][:4]
    sample = encoders["qwen3"].encode(record, "messages").sample
    thoughts = "<think>\nI should call.\n</think>\n\n", "<think>\nIt said nine.\n</think>\n\n"
    call = f"<tool_call>\n{PLAIN_CALL}\n</tool_call><|im_end|>"
    assert trained_text(encoders["qwen3"], sample) == f"{thoughts[0]}{call}{thoughts[1]}It is 9.<|im_end|>"


def test_template_without_reasoning_gets_it_inline(encoders: Encoders) -> None:
    """Reasoning is never dropped without a word: it is written in the answer, or the record is refused."""
    sample = encoders["chatml"].encode(reasoning_record(), "messages").sample
    text = trained_text(encoders["chatml"], sample)
    assert text == ("<think>\nOne and one.\n</think>\n\n2<|im_end|><think>\nTwo and two.\n</think>\n\n4<|im_end|>")
    with pytest.raises(RecordError, match=r"context_dropped.*reasoning of turn 4"):
        encoders["r1"].encode(reasoning_record(), "messages")


def test_named_template_for_tools(folder: Path, tmp_path: Path) -> None:
    """Tokenizers may carry one template for tools and one for the rest; both count in the fingerprint."""
    tokenizer = make_encoder(folder, None)._tokenizer
    tokenizer.chat_template = {"default": SHAPES["chatml"].source, "tool_use": QWEN3}
    tokenizer.save_pretrained(str(tmp_path))
    encoder = make_encoder(tmp_path, None)
    with_tools = encoder.encode(tool_record(), "messages").sample
    assert trained_text(encoder, with_tools) == TRAINED_WITH_TOOLS["qwen3"]
    without = encoder.encode(
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "messages"
    ).sample
    assert trained_text(encoder, without) == "A<|im_end|>"
    tokenizer.chat_template = {"default": SHAPES["chatml"].source, "tool_use": SHAPES["mistral_tools"].source}
    tokenizer.save_pretrained(str(tmp_path / "other"))
    assert make_encoder(tmp_path / "other", None).fingerprint != encoder.fingerprint
