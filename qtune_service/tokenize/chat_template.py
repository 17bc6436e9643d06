r"""Render a chat template, learn its properties, and fall back for features that it lacks.

transformers' own function renders, so the text is the one that a trainer sees. Only `strftime_now` is pinned (to
`RENDER_DATE`), because a template that prints the current date would render differently in a resumed job.

Properties are learned by rendering small conversations with probe text, never by parsing the template:
  header       the text between a prompt and the assistant's text, as added by add_generation_prompt. If a template
               ignores that flag, the header is taken from a rendered answer. It is empty where an answer directly
               follows the prompt, as after Mistral's `[/INST]`. White space there belongs to the answer.
  end_of_turn  the first special token after an answer, or the literal text there if there is none.
  knows_*      whether system turns, tool results, calls, tool descriptions and reasoning are rendered.

Template fallbacks keep the whole context. A template without tools or system role omits them silently. So content that
a template cannot render moves to a place where it can, in this order and form:
  developer turn   becomes a system turn
  reasoning        `<think>\nREASONING\n</think>\n\nCONTENT`, the form in which reasoning models write it
  tools            JSON, one a line, after the system prompt
  tool_calls       JSON text `{"name": ..., "arguments": {...}}` after the content; several calls as a list
  tool results     user turns; several in a row are joined by newlines
  system turn      before the first user turn, two newlines between
Then `check_context` searches the rendered text for every turn, and rejects the record if one is missing. A template may
drop the reasoning of answers before the last user turn, as reasoning models do, but not after it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from qtune_service.errors import ModelError
from qtune_service.ingest.records import Conversation, Message, RecordError

Span = tuple[int, int]  # characters of the rendered text, end excluded

PLAIN_TEMPLATE = """\
{{ bos_token or '' }}{% for message in messages %}{% if message.role == 'assistant' %}\
{% generation %}{{ message.content }}{{ eos_token or '\n' }}{% endgeneration %}\
{% else %}{{ message.content }}{{ '\n' }}{% endif %}{% endfor %}"""
"""Template for tokenizers without one: bos, other turns with a newline, answers with eos."""

RENDER_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - text only; the fallback date of Llama's templates
MAX_RENDERED_CHARS = 16 << 20
"""Length limit of a rendered conversation: four times the text of a context of a million tokens."""
MAX_ERROR_CHARS = 500
"""Length limit of a template's error message: `raise_exception` accepts any text."""
PROBE = "Qx7probe9Xq"  # it survives trimming and JSON escapes
_ANSWER = "Zk4answer2Kz"
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINK_OPENED = re.compile(r"(<think>\s*(</think>\s*)?|</think>\s*)$")


class ChatTemplate:
    """A chat template with the variables of its tokenizer."""

    def __init__(self, source: str, variables: Mapping[str, Any], special_tokens: Collection[str]) -> None:
        self.source = source
        self.has_markers = _MARKERS.search(source) is not None
        self._variables = {**variables, "strftime_now": RENDER_DATE.strftime}
        self._special = _alternation(special_tokens)
        self._closing = re.compile(rf"(?:{self._special.pattern})\Z") if self._special else None
        self._check_syntax()
        self.knows_calls = "tool_calls" in source
        self.knows_tools = re.search(r"\btools\b", source) is not None
        self.knows_reasoning = "reasoning_content" in source
        self.knows_developer = "developer" in source
        self.requires_call_ids = "tool_call_id" in source
        self.knows_system = self._shows(_system_probe())
        self.knows_tool_role = self._shows(_tool_probe(with_call=self.knows_calls))
        self.header, self._header_is_learned = self._learn_header()
        self.end_of_turn = self._learn_end_of_turn()
        self.tails: dict[tuple[str, str, bool], tuple[str, ...]] = {}  # ends of prompts, learned by assistant_mask.py
        self.shapes: dict[tuple[str, ...], list[str]] = {}  # template text by roles; see assistant_mask.py

    def render(self, messages: Sequence[Message], tools: Any = None, *, add_generation_prompt: bool = False) -> str:
        """Render a conversation. Raises RecordError if the template fails."""
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def render_marked(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[Span] | None]:
        """Render a conversation with the spans of generation markers; None without markers."""
        return self._render(messages, tools, with_spans=self.has_markers)

    def prompts(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, ...]:
        """Return the generation prompt, and its form without an opened or empty thought.

        Reasoning models open a thought in the generation prompt and drop it from earlier turns.
        """
        text = self.render(messages, tools, add_generation_prompt=not self._header_is_learned)
        text += self.header if self._header_is_learned else ""
        if not text.endswith(self.header):
            return (text,)
        return tuple(text[: len(text) - len(self.header)] + header for header in self.headers())

    def headers(self) -> tuple[str, ...]:
        """Return the header, and its form without an opened or empty thought."""
        bare = _THINK_OPENED.sub("", self.header)
        return (self.header,) if bare == self.header else (self.header, bare)

    def special_at(self, text: str, start: int = 0) -> str | None:
        """Return the special token at `start`, if any."""
        found = self._special.match(text, start) if self._special else None
        return found[0] if found else None

    def closing_end(self, text: str) -> int | None:
        """Return the end of a special token that only white space follows, or None."""
        end = len(text.rstrip())
        closing = self._closing.search(text, max(0, end - 256), end) if self._closing else None
        return closing.end() if closing else None

    def is_template_only(self, text: str) -> bool:
        """Return whether `text` contains only special tokens and white space."""
        return not (self._special.sub("", text) if self._special else text).strip()

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        *,
        add_generation_prompt: bool = False,
        with_spans: bool = False,
    ) -> tuple[str, list[Span] | None]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except MemoryError as error:
            raise RecordError("template_error", "the chat template needs more memory than there is") from error
        except Exception as error:  # a template is a user program that may raise any error
            raise RecordError("template_error", f"the chat template refuses it: {_truncated_message(error)}") from error
        if len(texts[0]) > MAX_RENDERED_CHARS:
            what = f"the chat template makes {len(texts[0]):,} characters of it, more than {MAX_RENDERED_CHARS:,}"
            raise RecordError("template_error", what)
        return texts[0], spans[0] if with_spans else None

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self.render([{"role": "user", "content": PROBE}])
        except RecordError as error:
            cause = error.__cause__
            if isinstance(cause, TemplateSyntaxError):
                raise ModelError(  # the parser's message quotes the template, which may be a private file
                    f"the chat template is not valid Jinja, line {cause.lineno}",
                    "Give a working one with --chat-template.",
                ) from None
            if isinstance(cause, MemoryError) or cause is None:  # the limits fail on one short turn
                raise ModelError(error.detail, "Give a working one with --chat-template.") from error

    def _try(self, messages: Sequence[Message], **options: bool) -> str | None:
        try:
            return self.render(messages, **options)
        except RecordError:
            return None

    def _shows(self, messages: Sequence[Message]) -> bool:
        """Return whether the turn with PROBE is rendered, and differently from an assistant turn."""
        text = self._try(messages)
        as_answer = [{"role": "assistant", "content": PROBE} if m["content"] == PROBE else m for m in messages]
        return text is not None and PROBE in text and text != self._try(as_answer)

    def _learn_header(self) -> tuple[str, bool]:
        """Return the header, and whether only a rendered answer shows it."""
        prompted = [{"role": "user", "content": PROBE}]
        bare = self._try(prompted)
        prompt = self._try(prompted, add_generation_prompt=True)
        answered = self._try([*prompted, {"role": "assistant", "content": _ANSWER}])
        if bare is None or prompt is None:
            return "", False
        header = prompt[self._common_prefix(prompt, bare) :]
        if header or answered is None or not answered.startswith(bare):
            return header, False
        written = answered[len(bare) : answered.index(_ANSWER)] if _ANSWER in answered else ""
        return (written, True) if written.strip() else ("", False)

    def _common_prefix(self, text: str, other: str) -> int:
        """Return the length of the common prefix, without splitting a special token of `text`."""
        length = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), None)
        if length is None:
            return min(len(text), len(other))
        tokens = self._special.finditer(text) if self._special else ()
        return next((token.start() for token in tokens if token.start() < length < token.end()), length)

    def _learn_end_of_turn(self) -> str:
        text = self._try([{"role": "user", "content": PROBE}, {"role": "assistant", "content": _ANSWER}])
        if text is None or _ANSWER not in text:
            return ""
        tail = text[text.index(_ANSWER) + len(_ANSWER) :].lstrip()
        return self.special_at(tail) or tail.rstrip()


def _truncated_message(error: object) -> str:
    """Return the message of an error, truncated."""
    text = str(error)
    return text if len(text) <= MAX_ERROR_CHARS else f"{text[:MAX_ERROR_CHARS]} [...]"


def _alternation(tokens: Collection[str]) -> re.Pattern[str] | None:
    known = sorted((t for t in tokens if t), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def _system_probe() -> list[Message]:
    turns = (("system", PROBE), ("user", "A"), ("assistant", "B"))
    return [{"role": role, "content": content} for role, content in turns]


def _tool_probe(*, with_call: bool) -> list[Message]:
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    asking: Message = {"role": "assistant", "content": "" if with_call else "f"}
    return [
        {"role": "user", "content": "A"},
        {**asking, "tool_calls": [call]} if with_call else asking,
        {"role": "tool", "content": PROBE, "tool_call_id": "call00001"},
        {"role": "assistant", "content": "B"},
    ]


def apply_fallbacks(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """Apply the template fallbacks to a conversation. It stays unchanged if the template renders everything."""
    if conversation.tools is None and all(_is_plain(m, template) for m in conversation.messages):
        return conversation
    messages, trained, tools = list(conversation.messages), list(conversation.trained), conversation.tools
    if not template.knows_developer:
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    if not template.knows_reasoning:
        messages = [_with_inline_reasoning(m) for m in messages]
    if tools and not template.knows_tools:
        messages, trained, tools = *_with_tools_in_system(messages, trained, tools), None
    if not template.knows_calls:
        messages = [_with_calls_as_text(m) for m in messages]
    elif template.requires_call_ids:
        messages = _with_call_ids(messages)
    if not template.knows_tool_role:
        messages, trained = _with_results_as_user(messages, trained)
    if not template.knows_system:
        messages, trained = _with_system_in_user(messages, trained)
    return Conversation(tuple(messages), tools, tuple(trained))


def _is_plain(message: Message, template: ChatTemplate) -> bool:
    """Whether no rule changes the turn: role and content, and a role that every template knows or this one does."""
    role = message["role"]
    is_known = role in ("user", "assistant") or (role == "system" and template.knows_system)
    return is_known and len(message) == 2


def describe_fallbacks(template: ChatTemplate) -> list[str]:
    """Return the fallbacks of this template, for the manifest."""
    notes = {
        "tools in the system prompt": template.knows_tools,
        "tool calls as JSON text": template.knows_calls,
        "tool results as user turns": template.knows_tool_role,
        "system prompt in the first user turn": template.knows_system,
        "reasoning inline as <think>": template.knows_reasoning,
    }
    return [note for note, is_known in notes.items() if not is_known]


def check_context(conversation: Conversation, text: str) -> None:
    """Raise RecordError if a part of the conversation is missing in `text`."""
    messages, position = conversation.messages, 0
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for number, message in enumerate(messages):
        thought, content = split_reasoning(message)
        if number > last_user and thought and _find(thought, text, 0) is None:
            raise RecordError("context_dropped", f"the chat template drops the reasoning of turn {number}")
        # Some templates put the system prompt into the last user turn, so its position is not checked.
        start = 0 if message["role"] == "system" else position
        end = _find(content, text, start)
        if end is None:
            what = f"turn {number} ({message['role']})"
            raise RecordError("context_dropped", f"the chat template drops or rewrites {what}")
        position = position if message["role"] == "system" else end
        for call in message.get("tool_calls", ()):
            _check_call(call["function"], text, number)
    for tool in conversation.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name not in text:
            raise RecordError("context_dropped", f"the chat template drops the tool {name!r}")


def split_reasoning(message: Message) -> tuple[str, str]:
    """Return reasoning and content of a turn, stripped."""
    content = message["content"]
    thought = message.get("reasoning_content") or ""
    if message["role"] == "assistant" and "</think>" in content:
        before, _, content = content.rpartition("</think>")
        thought = before.rpartition("<think>")[2] or thought
    return thought.strip(), content.strip()


def _check_call(function: dict[str, Any], text: str, number: int) -> None:
    words = [function["name"], *function["arguments"]]
    words += [value for value in function["arguments"].values() if isinstance(value, str)]
    for word in words:
        if _find(word.strip(), text, 0) is None:
            raise RecordError("context_dropped", f"the chat template drops {word!r} of the tool call in turn {number}")


def _find(needle: str, text: str, start: int) -> int | None:
    """Return the end of the first occurrence of `needle`, plain or JSON-escaped."""
    for form in _forms(needle):
        found = text.find(form, start)
        if found >= 0:
            return found + len(form)
    return None


def _forms(needle: str) -> Iterator[str]:
    yield needle
    yield json.dumps(needle, ensure_ascii=False)[1:-1]
    yield json.dumps(needle)[1:-1]


def _with_inline_reasoning(message: Message) -> Message:
    if not message.get("reasoning_content"):
        return message
    rest = {k: v for k, v in message.items() if k != "reasoning_content"}
    return {**rest, "content": f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n{message['content']}"}


def _with_tools_in_system(
    messages: list[Message], trained: list[bool], tools: Sequence[dict[str, Any]]
) -> tuple[list[Message], list[bool]]:
    listing = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = f"You may call these tools:\n{listing}"
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]], trained
    return [{"role": "system", "content": text}, *messages], [False, *trained]


def _with_calls_as_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
    text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": f"{message['content']}\n{text}" if message["content"] else text}


def _with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """Assign ids to calls without one, and to results the ids of their calls in order."""
    out: list[Message] = []
    pending: list[str] = []
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                count += 1
                calls.append({"id": f"call{count:05d}", **call})  # nine characters, as Mistral's templates require
            pending = [call["id"] for call in calls]
            out.append({**message, "tool_calls": calls})
        elif message["role"] == "tool" and "tool_call_id" not in message and pending:
            out.append({**message, "tool_call_id": pending.pop(0)})
        else:
            out.append(message)
    return out


def _with_results_as_user(messages: list[Message], trained: list[bool]) -> tuple[list[Message], list[bool]]:
    out: list[Message] = []
    flags: list[bool] = []
    was_tool = False
    for message, flag in zip(messages, trained, strict=True):
        is_tool = message["role"] == "tool"
        if is_tool and was_tool:
            out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{message['content']}"}
        else:
            out.append({"role": "user", "content": message["content"]} if is_tool else message)
            flags.append(flag)
        was_tool = is_tool
    return out, flags


def _with_system_in_user(messages: list[Message], trained: list[bool]) -> tuple[list[Message], list[bool]]:
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    kept = [(m, flag) for m, flag in zip(messages, trained, strict=True) if m["role"] != "system"]
    first = next((i for i, (m, _) in enumerate(kept) if m["role"] == "user"), None)
    if not system:
        return [m for m, _ in kept], [flag for _, flag in kept]
    if first is None:
        raise RecordError("context_dropped", "the chat template has no system role, and no user turn can carry it")
    user, flag = kept[first]
    kept[first] = ({**user, "content": f"{system}\n\n{user['content']}"}, flag)
    return [m for m, _ in kept], [flag for _, flag in kept]
