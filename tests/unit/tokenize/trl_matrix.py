"""Templates that the installed TRL ships, tokenizers for them, and kinds of conversations.

The tokenizers are byte-level BPE with a family's special tokens. `FAMILIES` gives those that end turns as the vendors'
generation_config.json does.
"""

# ruff: noqa: RUF001 - DeepSeek's tokens

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qtune_service.config import InputSpec, ModelSpec
from qtune_service.tokenize.encoder import Encoder
from tests.unit.tokenize.chat_models import SOURCE_TEXT

_SPECIAL = re.compile(
    r"<\|[^|<>'\"\s]{1,40}\|>|<｜[^｜<>'\"\s]{1,40}｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?(?:start|end)_of_[a-z]+>|"
    r"\[/?(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|gMASK)\]|<sop>"
)


@dataclass(frozen=True, slots=True)
class Family:
    """Tokens of a model family that templates do not name."""

    bos: str
    eos: str
    stops: tuple[str, ...] = ()
    """Further stop tokens of generation_config.json."""
    absorbing: tuple[str, ...] = ()
    """Tokens that absorb the white space behind them."""


_QWEN = Family("<|endoftext|>", "<|im_end|>", ("<|endoftext|>",))
_GEMMA = Family("<bos>", "<eos>", ("<end_of_turn>",))
_LLAMA = Family("<|begin_of_text|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>"))
FAMILIES: Mapping[str, Family] = {
    "cohere": Family("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": Family("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": Family("<bos>", "<eos>", ("<turn|>", "<|tool_response>")),
    "gemma4": Family("<bos>", "<eos>", ("<turn|>", "<|tool_response>")),
    "gemma": _GEMMA,
    "glm4moe": Family("<|startoftext|>", "<|endoftext|>", ("<|user|>", "<|observation|>")),
    "gptoss": Family("<|startoftext|>", "<|return|>", ("<|call|>", "<|endoftext|>")),
    "idefics3": Family("<|begin_of_text|>", "<end_of_utterance>", ("<|end_of_text|>",)),
    "lfm2": Family("<|startoftext|>", "<|im_end|>"),
    "llama3": _LLAMA,
    "llava_next": Family("<s>", "</s>"),
    "muse": Family("<|begin_of_text|>", "<|eot|>", ("<|eom|>",)),
    "nemotron": Family("<s>", "<|im_end|>"),
    "phi3": Family("<s>", "<|endoftext|>", ("<|end|>",), ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    "qwen": _QWEN,
    "smolvlm": Family("<|im_start|>", "<end_of_utterance>"),
}


def family_of(template: str) -> Family:
    """Return the family of a template by its name."""
    return FAMILIES[max((name for name in FAMILIES if template.startswith(name)), key=len)]


def save_family_tokenizer(folder: Path, template: str, source: str) -> Path:
    """Write a byte-level BPE with the special tokens of a template's family."""
    family = family_of(template)
    named = sorted({*_SPECIAL.findall(source), family.bos, family.eos, *family.stops})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SOURCE_TEXT] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, rstrip=t in family.absorbing, special=True) for t in named])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=family.bos, eos_token=family.eos)
    fast.save_pretrained(str(folder))
    stops = fast.convert_tokens_to_ids([family.eos, *family.stops])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}), encoding="utf-8")
    return folder


def encoder_for(folder: Path, source: str, **spec: Any) -> Encoder:
    """Return an encoder for a template."""
    input_spec = InputSpec(paths=("data.jsonl",), chat_template=source, **spec)
    return Encoder(ModelSpec(name=str(folder)), input_spec, max_model_len=100_000)


def user(text: str) -> dict[str, Any]:
    """Return a user turn."""
    return {"role": "user", "content": text}


def bot(text: str | None, **keys: Any) -> dict[str, Any]:
    """Return an assistant turn."""
    return {"role": "assistant", "content": text, **keys}


def call(name: str, arguments: Any, **keys: Any) -> dict[str, Any]:
    """Return a call in OpenAI's form."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **keys}


def result(text: str, **keys: Any) -> dict[str, Any]:
    """Return the result of a call."""
    return {"role": "tool", "content": text, **keys}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city"}},
                "required": ["city"],
            },
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief."}
OSLO = {"city": "Oslo", "days": 2}
ASK = [user("Weather in Oslo?")]
MARKERS = "<|im_end|> <|eot_id|> </s> <|end|> <end_of_turn> <turn|> <|user|> <|return|>"


def _with_tools(*messages: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": TOOLS, "messages": [*ASK, *messages]}


def _chat(*messages: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def conversations() -> dict[str, dict[str, Any]]:
    """Return records of the format `messages` by the kind of conversation."""
    asked = bot("", tool_calls=[call("weather", OSLO, id="call00001")])
    answered = result('{"celsius": 3}', tool_call_id="call00001")
    return {
        "single": _chat(user("Hi"), bot("Hello there.")),
        "multi-turn": _chat(user("Hi"), bot("Hello."), user("Bye"), bot("Bye."), user("Sure?"), bot("Yes.")),
        "system": _chat(SYSTEM, user("Hi"), bot("Hello.")),
        "system, multi-turn": _chat(SYSTEM, user("Hi"), bot("Hello."), user("Bye"), bot("Bye.")),
        "ends with the user": _chat(user("Hi"), bot("Hello."), user("Thanks!")),
        "two answers in a row": _chat(user("Hi"), bot("Hello."), bot("Again.")),
        "answer first": _chat(bot("Welcome."), user("Hi"), bot("Hello.")),
        "system in the middle": _chat(user("Hi"), bot("Hello."), SYSTEM, user("Bye"), bot("Bye.")),
        "tools, no call": _with_tools(bot("I do not know.")),
        "call last": _with_tools(asked),
        "call, result": _with_tools(asked, answered, bot("3 degrees.")),
        "call as text, foreign id": _with_tools(
            bot(None, tool_calls=[call("weather", json.dumps(OSLO), id="call_abc123")]),
            result("3", tool_call_id="call_abc123"),
            bot("3 degrees."),
        ),
        "call without id": _with_tools(bot("", tool_calls=[call("weather", OSLO)]), result("3"), bot("3 degrees.")),
        "function_call": _with_tools(
            bot("", function_call={"name": "weather", "arguments": json.dumps(OSLO)}), result("3"), bot("3 degrees.")
        ),
        "tool last": _with_tools(asked, answered),
        "content beside a call": _with_tools(
            bot("Let me look.", tool_calls=[call("weather", OSLO, id="call00001")]), answered, bot("3 degrees.")
        ),
        "parallel calls": _with_tools(
            bot(
                "",
                tool_calls=[call("weather", OSLO, id="call00001"), call("weather", {"city": "Rome"}, id="call00002")],
            ),
            answered,
            result("20", tool_call_id="call00002"),
            bot("3 and 20."),
        ),
        "two rounds of calls": _with_tools(
            asked,
            answered,
            bot("", tool_calls=[call("weather", {"city": "Rome"}, id="call00002")]),
            result("20", tool_call_id="call00002"),
            bot("3 and 20."),
            user("Thanks."),
            bot("Welcome."),
        ),
        "call, user turn": _with_tools(asked, user("Never mind."), bot("As you wish.")),
        "reasoning": _chat(user("2+2?"), bot("It is 4.", reasoning_content="Two and two.")),
        "reasoning, multi-turn": _chat(
            user("1+1?"),
            bot("It is 2.", reasoning_content="One and one."),
            user("2+2?"),
            bot("It is 4.", reasoning_content="Two and two."),
        ),
        "reasoning inline": _chat(user("2+2?"), bot("<think>\nTwo and two.\n</think>\n\nIt is 4.")),
        "reasoning, call": _with_tools(
            bot("", reasoning_content="I should look.", tool_calls=[call("weather", OSLO, id="call00001")]),
            answered,
            bot("3 degrees.", reasoning_content="It said 3."),
        ),
        "empty question": _chat(user(""), bot("An answer."), user("  "), bot("Another.")),
        "untrained empty answer": _chat(user("a"), bot("", train=False), user("b"), bot("An answer.")),
        "Unicode": _chat(user("Grüße, 世界"), bot("你好, мир 😀👩‍👩‍👧"), user("שלום"), bot("مرحبا ﬁ")),
        "repeated words": _chat(SYSTEM | {"content": "yes"}, user("yes"), bot("yes"), user("yes"), bot("yes")),
        "white space": _chat(user(" Hi \n"), bot("  Hello. \n\n"), user("\n"), bot("\tBye.\n")),
        "words of templates": _chat(user("assistant\n"), bot("user\nassistant\nmodel\n"), user("x"), bot("y")),
        "markers in text": _chat(user(f"a {MARKERS}"), bot(f"b {MARKERS} c"), user("x"), bot("y")),
        "weights": _chat(user("a"), bot("first", weight=0), user("b"), bot("second", weight=1)),
        "training flags": _chat(user("a"), bot("first", train=True), user("b"), bot("second", train=False)),
    }
