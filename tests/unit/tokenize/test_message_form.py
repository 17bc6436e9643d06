"""tokenize/message_form.py: turns reach each template in the form that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.ingest.records import RecordError
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.message_form import MessageForm
from tests.unit.tokenize.chat_models import CHATML, MISTRAL_TOOLS, QWEN3, make_encoder, trained_text

ASK = {"role": "user", "content": "Area?"}
CHANNELS = """\
{% for m in messages %}{% if m.role == 'assistant' %}\
{% if m.KEY %}{{ '<|begin|>assistant to=self<|header|>' + m.KEY + '<|eom|>' }}{% endif %}\
{{ '<|begin|>assistant<|header|>' + m.content + '<|eot|>' }}\
{% else %}{{ '<|begin|>' + m.role + '<|header|>' + m.content + '<|eot|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|begin|>assistant' }}{% endif %}"""
"""Reasoning in a channel of its own, as in gpt-oss and Muse."""

PARTS = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}\
{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"""
"""Content as a list of parts, as in SmolVLM. Characters of a text have no type, so a text is not shown."""

SYSTEM_PARTS = """\
{% for m in messages %}{% if m.role == 'system' %}{{ '<|system|>' + m.content[0].text + '<|end|>' }}\
{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""Parts for the system turn only."""

THINKING_PARTS = """\
{% for m in messages %}{% if m.role == 'assistant' %}{% if m.content is string %}{{ m.content }}{% else %}\
{% for part in m.content %}{% if part.type == 'thinking' %}{{ '[THINK]' + part.thinking + '[/THINK]' }}\
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}\
{% else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}"""
"""Reasoning as a part, as in Magistral."""

JOINED_CALLS = """\
{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>' }}\
{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '[TOOL_CALLS]' + c.function.name + ' ' + c.function.arguments }}\
{% endfor %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}\
{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""Arguments are concatenated as text, as in DeepSeek V3."""

PRINTED_CALLS = JOINED_CALLS.replace("+ ' ' + c.function.arguments }}", "+ ' ' }}{{ c.function.arguments }}")
"""Arguments are printed, an object in Python's notation."""

NULL_CONTENT = JOINED_CALLS.replace("{% if m.tool_calls %}", "{% if m.content is none %}")
"""Calls are shown only where the content is null, as in R1-distill."""

FIRST_CALL = JOINED_CALLS.replace("for c in m.tool_calls", "for c in m.tool_calls[:1]")

COMMAND_A = """\
{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|begin|>chatbot<|/header|>' }}\
{% if m.tool_calls %}{{ '[TOOL_CALLS]' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}\
{{ '<|eom|><|end|>' }}{% else %}{{ '<|header|>' + m.content + '<|eot|><|end|>' }}{% endif %}\
{% else %}{{ '<|begin|>' + m.role + '<|/header|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|begin|>chatbot<|/header|>' }}{% endif %}"""
"""Answers and calls end in different tokens before the turn's own, as in Command-A."""


def form_of(encoder: Encoder) -> MessageForm:
    """Return the learned form."""
    return encoder._template(None).form


def answer(text: str = "9", **keys: Any) -> dict[str, Any]:
    """Return an assistant turn."""
    return {"role": "assistant", "content": text, **keys}


def call(arguments: Any, **keys: Any) -> dict[str, Any]:
    """Return a call."""
    return {"type": "function", "function": {"name": "area", "arguments": arguments}, **keys}


def trained(encoder: Encoder, *messages: dict[str, Any]) -> str:
    """Return the trained text of a conversation."""
    return trained_text(encoder, encoder.encode({"messages": list(messages)}, "messages").sample)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_to_the_templates_key(key: str, folder: Path) -> None:
    """A template reads reasoning from one of three keys, and gets it there."""
    encoder = make_encoder(folder, CHANNELS.replace("KEY", key))
    assert form_of(encoder).reasoning == key
    wanted = " to=self<|header|>3 x 3<|eom|><|begin|>assistant<|header|>9<|eot|>"
    assert trained(encoder, ASK, answer(reasoning_content="3 x 3")) == wanted
    for inline in ("<think>\n3 x 3\n</think>\n\n9", "3 x 3</think>9"):
        assert trained(encoder, ASK, answer(inline)) == wanted, "inline reasoning moves to its channel"


def test_tags_within_an_answer_are_text(folder: Path) -> None:
    """Only reasoning at the start of an answer moves."""
    encoder = make_encoder(folder, CHANNELS.replace("KEY", "thinking"))
    text = "Write <think>a</think> and <think>b</think>."
    assert trained(encoder, ASK, answer(text)) == f"<|header|>{text}<|eot|>"


def test_templates_that_write_think_keep_the_inline_form(folder: Path) -> None:
    """The literal tag is the template's own place."""
    assert form_of(make_encoder(folder, QWEN3)) == MessageForm(reasoning="reasoning_content")
    assert not form_of(make_encoder(folder, CHATML)).moves_inline


def test_reasoning_as_a_part(folder: Path) -> None:
    """Magistral reads reasoning from a part of the content."""
    encoder = make_encoder(folder, THINKING_PARTS)
    assert form_of(encoder).reasoning == "part"
    assert trained(encoder, ASK, answer(reasoning_content="3 x 3")) == "[THINK]3 x 3[/THINK]9</s>"
    assert trained(encoder, ASK, answer("<think>3 x 3</think>9")) == "[THINK]3 x 3[/THINK]9</s>"
    assert trained(encoder, ASK, answer()) == "9</s>"


def test_templates_that_want_parts_get_parts(folder: Path) -> None:
    """All roles, a system turn and a result included."""
    encoder = make_encoder(folder, PARTS)
    assert form_of(encoder).parts == {"user", "assistant", "system", "tool"}
    turns = [{"role": "system", "content": "S"}, ASK, answer("a"), {"role": "tool", "content": "R"}, answer("b")]
    assert trained(encoder, *turns) == "a<|im_end|>b<|im_end|>"
    assert form_of(make_encoder(folder, SYSTEM_PARTS)).parts == {"system"}
    assert trained(make_encoder(folder, SYSTEM_PARTS), turns[0], ASK, answer("a")) == "a<|end|>"
    assert form_of(make_encoder(folder, CHATML)).parts == frozenset()


@pytest.mark.parametrize("template", [JOINED_CALLS, PRINTED_CALLS, NULL_CONTENT])
def test_arguments_are_text_where_the_template_takes_text(template: str, folder: Path) -> None:
    """Key order and numbers stay. The text is the record's own, and of an object that of tojson."""
    encoder = make_encoder(folder, template)
    assert form_of(encoder).arguments_as_text
    arguments = {"w": 3, "h": 2.50, "unit": "cm²", "deep": {"b": [1, None], "a": True}}
    own = json.dumps(arguments, separators=(",", ":"))
    for given, wanted in ((arguments, json.dumps(arguments, ensure_ascii=False)), (own, own)):
        turns = [ASK, answer("", tool_calls=[call(given)]), {"role": "tool", "content": "R"}, answer()]
        assert trained(encoder, *turns) == f"[TOOL_CALLS]area {wanted}</s>9</s>"


def test_arguments_stay_objects_where_the_template_takes_objects(folder: Path) -> None:
    """Text inside JSON would be escaped twice."""
    for template in (QWEN3, MISTRAL_TOOLS, COMMAND_A):
        assert not form_of(make_encoder(folder, template)).arguments_as_text


def test_a_second_call_that_is_not_shown_is_refused(folder: Path) -> None:
    """Also where both calls are equal, so that the text contains their words."""
    encoder = make_encoder(folder, FIRST_CALL)
    turns = [ASK, answer("", tool_calls=[call({"w": 3}), call({"w": 3})])]
    with pytest.raises(RecordError, match=r"context_dropped: .*one call a turn; turn 2 makes 2"):
        trained(encoder, *turns)


@pytest.mark.parametrize("own", ["call_1", "x", "call_0123456789abcdef", "functions.area:0", None])
def test_mistral_gets_ids_of_nine_characters(own: str | None, folder: Path) -> None:
    """Ids of other vendors are replaced in calls and results alike."""
    encoder = make_encoder(folder, MISTRAL_TOOLS)
    assert form_of(encoder).nine_character_ids
    first, second = ({"id": f"{own}{i}"} if own else {} for i in (1, 2))
    results = [
        {"role": "tool", "content": content, **({"tool_call_id": call_id["id"]} if call_id else {})}
        for content, call_id in ((("two", second), ("one", first)) if own else (("one", first), ("two", second)))
    ]
    turns = [ASK, answer("", tool_calls=[call({"w": 1}, **first), call({"w": 2}, **second)]), *results, answer()]
    sample = encoder.encode({"messages": turns}, "messages").sample
    text = encoder.decode(sample.input_ids.tolist())
    assert '{"content": one, "call_id": "call00001"}' in text
    assert '{"content": two, "call_id": "call00002"}' in text
    assert '"arguments": {"w": 2}, "id": "call00002"' in text


def test_ids_of_nine_characters_stay(folder: Path) -> None:
    """New ids never equal an id of the record."""
    encoder = make_encoder(folder, MISTRAL_TOOLS)
    calls = [call({"w": 1}, id="long_id_of_a_vendor"), call({"w": 2}, id="call00001")]
    text = trained(encoder, ASK, answer("", tool_calls=calls))
    assert '{"w": 1}, "id": "call00002"' in text
    assert '{"w": 2}, "id": "call00001"' in text


def test_answers_and_calls_that_end_differently(folder: Path) -> None:
    """Command-A ends answers and actions in different tokens."""
    encoder = make_encoder(folder, COMMAND_A)
    turns = [ASK, answer("", tool_calls=[call({"w": 3})]), {"role": "tool", "content": "R"}, answer(), ASK, answer()]
    wanted = '[TOOL_CALLS]{"name": "area", "arguments": {"w": 3}}<|eom|><|end|><|header|>9<|eot|><|end|>'
    assert trained(encoder, *turns) == wanted + "<|header|>9<|eot|><|end|>"
