"""Small tokenizers with chat templates of the shapes that real models have, and what each should train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.samples import Sample
from qtune_service.tokenize.encoder import Encoder

Turn = Mapping[str, Any]

SPECIALS = (
    "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>", "<|eom|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>",
)  # fmt: skip

CHATML = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

CHATML_NO_PROMPT = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"""

CHATML_DEFAULT_SYSTEM = (
    """\
{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}\
"""
    + CHATML
)

MARKED = """\
{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}\
{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}\
{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|header|>system<|/header|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}
{%- if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}
{{- system + '<|eot|>' }}
{%- for m in messages %}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('only single tool calls') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|header|>assistant<|/header|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|eom|>' }}
{%- elif m.role == 'tool' %}{{- '<|header|>ipython<|/header|>\n\n' + (m.content | tojson) + '<|eot|>' }}
{%- else %}{{- '<|header|>' + m.role + '<|/header|>\n\n' + m.content | trim + '<|eot|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{% endif %}"""

MISTRAL = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for m in turns %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}
{%- if loop.last and system is defined or turns | length == loop.index + 1 and system is defined %}
{{- '[INST] ' + system + '\n\n' + m.content + ' [/INST]' }}
{%- else %}{{- '[INST] ' + m.content + ' [/INST]' }}{% endif %}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}
{%- else %}{{ raise_exception('only user and assistant roles') }}{% endif %}
{%- endfor %}"""

MISTRAL_TOOLS = """\
{{- bos_token }}
{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.last_user %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined %}
{{- '[TOOL_CALLS] [' }}
{%- for c in m.tool_calls %}
{%- if c.id is not defined or c.id | length != 9 %}{{ raise_exception('call ids have 9 characters') }}{% endif %}
{{- '{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + ', "id": "' + c.id + '"}' }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception('unknown role') }}{% endif %}
{%- endfor %}"""

QWEN3 = """\
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '# Tools\n<tools>' }}{% for t in tools %}{{- '\n' }}{{- t | tojson }}{% endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content %}{% set thought = '' %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in m.content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for c in m.tool_calls or [] %}
{%- if not loop.first or content %}{{- '\n' }}{% endif %}
{{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

R1 = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|assistant|>' + m.content.split('</think>')[-1] + '<|endoftext|>' }}
{%- else %}{{- '<|' + m.role + '|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|><think>\n' }}{% endif %}"""

PHI3 = """\
{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"""


@dataclass(frozen=True, slots=True)
class Shape:
    """A template, and the text that one assistant turn of plain conversation contributes to training."""

    source: str | None
    turn: Callable[[str, bool], str]  # (content, is it the last turn) -> its trained text


NO_THOUGHT = "<think>\n\n</think>\n\n"
SHAPES: dict[str, Shape] = {
    "chatml": Shape(CHATML, lambda text, _: text + "<|im_end|>"),
    "chatml_no_prompt": Shape(CHATML_NO_PROMPT, lambda text, _: text + "<|im_end|>"),
    "chatml_default_system": Shape(CHATML_DEFAULT_SYSTEM, lambda text, _: text + "<|im_end|>"),
    "marked": Shape(MARKED, lambda text, _: text + "<|im_end|>"),
    "llama3": Shape(LLAMA3, lambda text, _: text.strip() + "<|eot|>"),
    "mistral": Shape(MISTRAL, lambda text, _: f" {text.strip()}</s>"),
    "mistral_tools": Shape(MISTRAL_TOOLS, lambda text, _: f" {text}</s>"),
    "qwen3": Shape(QWEN3, lambda text, last: (NO_THOUGHT if last else "") + text + "<|im_end|>"),
    "r1": Shape(R1, lambda text, _: text + "<|endoftext|>"),
    "phi3": Shape(PHI3, lambda text, _: text + "<|end|>"),
    "plain": Shape(None, lambda text, _: text + "</s>"),
}


def save_tokenizer(folder: Path) -> Path:
    """Train a byte-level BPE with the special tokens, whose post-processor trims white space off the offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SOURCE_TEXT] * 4, trainer)
    # Phi's markers swallow the white space that follows them.
    swallowing = {"<|end|>", "<|assistant|>", "<|user|>", "<|system|>"}
    tokenizer.add_special_tokens([AddedToken(t, rstrip=t in swallowing, special=True) for t in SPECIALS])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(str(folder))
    return folder


SOURCE_TEXT = (
    "The quick brown fox jumps over the lazy dog.\n\nassistant user system tool\nWhat is the answer to this question? "
    "The answer is 42, and the next answer: 7.\n\n\n   There are several answers.\tHello there!\n" + CHATML + LLAMA3
)


Encoders = dict[str, Encoder]
"""By the template's shape."""


def make_encoder(folder: Path, template: str | None, *, max_model_len: int = 100_000, **spec: Any) -> Encoder:
    """Return an encoder over the tokenizer in `folder` with a template."""
    input_spec = InputSpec(paths=("data.jsonl",), chat_template=template, **spec)
    return Encoder(ModelSpec(name=str(folder)), input_spec, max_model_len=max_model_len)


def trained_text(encoder: Encoder, sample: Sample) -> str:
    """Return the text that the mask selects."""
    return encoder.decode(sample.input_ids[sample.loss_mask == 1].tolist())


def expected_text(shape: Shape, messages: Sequence[Turn], trained: Sequence[bool] | None = None) -> str:
    """Return the text that the mask should select of a conversation without tools and reasoning."""
    flags = trained if trained is not None else [m["role"] == "assistant" for m in messages]
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    pairs = zip(range(len(messages)), messages, flags, strict=True)
    is_last = len(messages) - 1
    return "".join(shape.turn(m["content"], last_user < i == is_last) for i, m, flag in pairs if flag)


CALL = {"type": "function", "function": {"name": "area", "arguments": '{"w": 3, "unit": "cm²"}'}}
TOOLS = [{"name": "area", "description": "Area of a square", "parameters": {"type": "object"}}]


def tool_record() -> dict[str, Any]:
    """Two rounds; the first calls a tool."""
    return {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": "Area of 3?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": '{"area": 9}'},
            {"role": "assistant", "content": "It is 9."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."},
        ],
    }


def reasoning_record() -> dict[str, Any]:
    """Two answers with reasoning."""
    return {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2", "reasoning_content": "One and one."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
        ]
    }
