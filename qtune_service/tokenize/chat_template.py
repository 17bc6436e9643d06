"""Render a chat template and learn its properties.

transformers' own function renders, so the text is the one that a trainer sees. Only `strftime_now` is pinned (to
`RENDER_DATE`), because a template that prints the current date would render differently in a resumed job.

Properties are learned by rendering small conversations with probe text, never by parsing the template:
  form         how turns, reasoning and calls are given to the template; see message_form.py
  header       the text between a prompt and the assistant's text, as added by add_generation_prompt. If a template
               ignores that flag, the header is taken from a rendered answer. It is empty where an answer directly
               follows the prompt, as after Mistral's `[/INST]`. White space there belongs to the answer.
  end_of_turn  the first special token after an answer, or the literal text there if there is none.
  knows_*      whether system turns, tool results, calls and tool descriptions are rendered.

A record may give variables to its rendering (`chat_template_kwargs`, `documents`). Records are untrusted: names that
the tokenizer, the renderer or Jinja defines are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

from qtune_service.errors import ModelError
from qtune_service.ingest.records import Message, RecordError
from qtune_service.tokenize.message_form import ANSWER, PROBE, MessageForm, call_conversation, call_probe, learn_form

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
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
RESERVED = frozenset(
    {
        *("messages", "tools", "conversations", "chat_template", "compiled_template", "return_assistant_tokens_mask"),
        *("add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now", "self", "loop"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("additional_special_tokens", "range", "dict", "lipsum", "cycler", "joiner", "namespace", "caller"),
    }
)
"""Names that a record may not set: those of the renderer, of the tokenizer and of Jinja."""
_THINK_OPENED = re.compile(r"(<think>\s*(</think>\s*)?|</think>\s*)$")


class ChatTemplate:
    """A chat template with the variables of its tokenizer."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        special_tokens: Collection[str],
        stop_tokens: Collection[str] = (),
    ) -> None:
        self.source = source
        self.stops = tuple(token for token in stop_tokens if token)
        self.has_markers = _MARKERS.search(source) is not None
        self._variables = {**variables, "strftime_now": RENDER_DATE.strftime}
        self.special_tokens = tuple(token for token in special_tokens if token)
        self._special = _alternation(self.special_tokens)
        self._closing = re.compile(rf"(?:{self._special.pattern})\Z") if self._special else None
        self.form, self._takes_default_form = MessageForm(), True
        self._check_syntax()
        self.form = learn_form(self._try, source)
        self._takes_default_form = self.form.is_default
        self.knows_calls = "tool_calls" in source
        self.knows_tools = re.search(r"\btools\b", source) is not None
        self.knows_developer = "developer" in source
        self.requires_call_ids = "tool_call_id" in source
        self.knows_system = self._shows(_system_probe())
        self.knows_tool_role = self._shows(_tool_probe(with_call=self.knows_calls))
        self.header, self._header_is_learned = self._learn_header()
        self.end_of_turn = self._learn_end_of_turn()
        self._closes_prompts = self._learn_end_of_prompt()
        self.stops_at_end_of_turn = self.end_of_turn in self.stops
        self.closings = tuple(t for t in dict.fromkeys((*self.stops, self._closes_prompts)) if t)
        self.tails: dict[tuple[str, str, bool], tuple[str, ...]] = {}  # ends of prompts, learned by turn_spans.py
        self.junctions: dict[tuple[Any, ...], tuple[str, int]] = {}  # text between turns; see turn_spans.py
        self.shapes: dict[tuple[str, ...], list[str]] = {}  # template text by roles; see turn_spans.py

    def render(
        self,
        messages: Sequence[Message],
        tools: Any = None,
        variables: Mapping[str, Any] = NO_VARIABLES,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation. Raises RecordError if the template fails."""
        return self._render(messages, tools, variables, add_generation_prompt=add_generation_prompt)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: Any = None, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> tuple[str, list[Span] | None]:
        """Render a conversation with the spans of generation markers; None without markers."""
        return self._render(messages, tools, variables, with_spans=self.has_markers)

    def prompts(
        self, messages: Sequence[Message], tools: Any = None, variables: Mapping[str, Any] = NO_VARIABLES
    ) -> tuple[str, ...]:
        """Return the generation prompt, and its form without an opened or empty thought.

        Reasoning models open a thought in the generation prompt and drop it from earlier turns.
        """
        text = self.render(messages, tools, variables, add_generation_prompt=not self._header_is_learned)
        text += self.header if self._header_is_learned else ""
        header = self.header
        if variables:  # they may open or close the thought
            bare = self.render(messages, tools, variables)
            header = text[len(bare) :] if text.startswith(bare) else header
        if not text.endswith(header):
            return (text,)
        return tuple(text[: len(text) - len(header)] + form for form in _header_forms(header))

    @cached_property
    def headers(self) -> tuple[str, ...]:
        """Return the header, and its form without an opened or empty thought."""
        return _header_forms(self.header)

    @cached_property
    def visible_headers(self) -> tuple[str, ...]:
        """Return the headers that are not only white space."""
        return tuple(header for header in self.headers if header.strip())

    @cached_property
    def variables(self) -> frozenset[str]:
        """Return the names of variables that the template reads."""
        from jinja2.meta import find_undeclared_variables
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template(self.source).environment
        return frozenset(find_undeclared_variables(environment.parse(self.source)))

    def closes_turns(self, token: str) -> bool:
        """Return whether a special token ends turns: answers, prompts before an answer, or generation."""
        return token == self.end_of_turn or token in self.closings

    def common_prefix(self, text: str, other: str) -> int:
        """Return the length of the common prefix, without splitting a special token of `text`."""
        start, size = 0, min(len(text), len(other))
        while start < size and text[start : start + 4096] == other[start : start + 4096]:
            start += 4096  # long prefixes are compared in large steps
        length = next((i for i in range(start, size) if text[i] != other[i]), None)
        if length is None:
            return size
        tokens = self._special.finditer(text, max(0, length - 256)) if self._special else ()
        return next((token.start() for token in tokens if token.start() < length < token.end()), length)

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
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
        with_spans: bool = False,
    ) -> tuple[str, list[Span] | None]:
        from transformers.utils.chat_template_utils import render_jinja_template

        if variables:
            variables = self._checked(variables)
        form = self.form
        turns = list(messages) if self._takes_default_form else [form.native(message) for message in messages]
        try:
            texts, spans = render_jinja_template(
                [turns],
                tools=tools,
                chat_template=self.source,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=add_generation_prompt,
                **variables,
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

    def _checked(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables of a record. Raise RecordError if one replaces a name of the renderer."""
        known = {"add_generation_prompt": False, **self._variables}
        for name in RESERVED.union(self._variables) & variables.keys():
            if name not in known or variables[name] != known[name]:
                what = f"chat_template_kwargs sets {name!r}, which the tokenizer or the record's columns give"
                raise RecordError("template_error", what)
        given = {name: value for name, value in variables.items() if name not in RESERVED | self._variables.keys()}
        if (documents := given.get("documents")) is not None:
            given["documents"] = _documents(documents)
        return given

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

    def _try(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str | None:
        try:
            return self.render(messages, add_generation_prompt=add_generation_prompt)
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
        answered = self._try([*prompted, {"role": "assistant", "content": ANSWER}])
        if bare is None or prompt is None:
            return "", False
        header = prompt[self.common_prefix(prompt, bare) :]
        if header or answered is None or not answered.startswith(bare):
            return header, False
        written = answered[len(bare) : answered.index(ANSWER)] if ANSWER in answered else ""
        return (written, True) if written.strip() else ("", False)

    def _learn_end_of_turn(self) -> str:
        text = self._try([{"role": "user", "content": PROBE}, {"role": "assistant", "content": ANSWER}])
        if text is None or ANSWER not in text:
            return ""
        tail = text[text.index(ANSWER) + len(ANSWER) :].lstrip()
        return self.special_at(tail) or tail.rstrip()

    def _learn_end_of_prompt(self) -> str | None:
        """Return the special token between a user's text and the header."""
        text = self._try([{"role": "user", "content": PROBE}], add_generation_prompt=True)
        if text is None or PROBE not in text or not self.header or not text.endswith(self.header):
            return None
        return self.special_at(text[text.index(PROBE) + len(PROBE) : len(text) - len(self.header)].lstrip())


def _header_forms(header: str) -> tuple[str, ...]:
    bare = _THINK_OPENED.sub("", header)
    return (header,) if bare == header else (header, bare)


def _documents(documents: Any) -> list[Any]:
    """Return documents as objects. Raise RecordError if they are none."""
    if not isinstance(documents, Sequence) or isinstance(documents, str | bytes):
        raise RecordError("template_error", "documents must be a list of objects with a title and a text")
    return [{"text": document} if isinstance(document, str) else document for document in documents]


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
    turns = call_conversation(call_probe("f"), result=PROBE)
    return turns if with_call else [turns[0], {"role": "assistant", "content": "f"}, *turns[2:]]
