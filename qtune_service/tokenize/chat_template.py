"""One chat template: what it renders, and the facts about it that the mask needs.

Rendering is done by transformers' own function, so the text is what a trainer would see; only `strftime_now` is
pinned (to `RENDER_DATE`), because a template that prints today's date would give another text on a resumed job.

The facts are learned by rendering small conversations with marker words, never by reading the template:
  header       what stands between a prompt and the assistant's words. It is what add_generation_prompt adds; a
               template that ignores that flag is asked by rendering an answer. Empty where an answer follows the
               prompt directly, as after Mistral's `[/INST]`; white space there belongs to the answer.
  end_of_turn  the first special token after an answer, or the literal text there where no special token is.
  knows_*      whether system turns, tool results, calls, descriptions of tools and reasoning reach the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from qtune_service.errors import ModelError
from qtune_service.ingest.records import Message, RecordError

Span = tuple[int, int]  # characters of the rendered text, end excluded

PLAIN_TEMPLATE = """\
{{ bos_token or '' }}{% for message in messages %}{% if message.role == 'assistant' %}\
{% generation %}{{ message.content }}{{ eos_token or '\n' }}{% endgeneration %}\
{% else %}{{ message.content }}{{ '\n' }}{% endif %}{% endfor %}"""
"""For tokenizers without a template: bos, each other turn and a newline, each answer and eos."""

RENDER_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - a label in a text, the one that Llama's templates fall back to
MAX_RENDERED_CHARS = 16 << 20
"""Of one conversation: four times the text of a context of a million tokens."""
MAX_ERROR_CHARS = 500
"""Of what a template says when it refuses: `raise_exception` takes any text."""
PROBE = "Qx7probe9Xq"  # a word: it survives trimming and JSON escapes
_ANSWER = "Zk4answer2Kz"
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINK_OPENED = re.compile(r"(<think>\s*(</think>\s*)?|</think>\s*)$")


class ChatTemplate:
    """A template with the variables of its tokenizer."""

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
        self.wants_call_ids = "tool_call_id" in source
        self.knows_system = self._shows(_system_probe())
        self.knows_tool_role = self._shows(_tool_probe(with_call=self.knows_calls))
        self.header, self._header_is_learned = self._learn_header()
        self.end_of_turn = self._learn_end_of_turn()
        self.tails: dict[tuple[str, str, bool], tuple[str, ...]] = {}  # what prompts end in, as borders.py learns it
        self.shapes: dict[tuple[str, ...], list[str]] = {}  # by roles, what is written between words; see borders.py

    def render(self, messages: Sequence[Message], tools: Any = None, *, add_generation_prompt: bool = False) -> str:
        """Text of a conversation. Raises RecordError where the template refuses it."""
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def render_marked(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[Span] | None]:
        """Text, and the spans that the template marks as generated; None where it has no markers."""
        return self._render(messages, tools, with_spans=self.has_markers)

    def prompts(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, ...]:
        """What an assistant would continue from, and the same without an opened or empty thought.

        Reasoning models open one in the generation prompt and drop it from earlier turns.
        """
        text = self.render(messages, tools, add_generation_prompt=not self._header_is_learned)
        text += self.header if self._header_is_learned else ""
        if not text.endswith(self.header):
            return (text,)
        return tuple(text[: len(text) - len(self.header)] + header for header in self.headers())

    def headers(self) -> tuple[str, ...]:
        """`header`, and the same without an opened or empty thought."""
        bare = _THINK_OPENED.sub("", self.header)
        return (self.header,) if bare == self.header else (self.header, bare)

    def special_at(self, text: str, start: int = 0) -> str | None:
        """The special token that begins at `start`, if any."""
        found = self._special.match(text, start) if self._special else None
        return found[0] if found else None

    def closing_end(self, text: str) -> int | None:
        """End of the special token after which `text` holds white space only, if there is one."""
        end = len(text.rstrip())
        closing = self._closing.search(text, max(0, end - 256), end) if self._closing else None
        return closing.end() if closing else None

    def is_template_only(self, text: str) -> bool:
        """Whether `text` is nothing but special tokens and white space."""
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
        except Exception as error:  # a template is a program of the user's: it may raise anything
            raise RecordError("template_error", f"the chat template refuses it: {_beginning(error)}") from error
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
                raise ModelError(  # the parser's own message quotes the template, which may be a file
                    f"the chat template is not valid Jinja, line {cause.lineno}",
                    "Give a working one with --chat-template.",
                ) from None
            if isinstance(cause, MemoryError) or cause is None:  # too much of one short turn is too much of any
                raise ModelError(error.detail, "Give a working one with --chat-template.") from error

    def _try(self, messages: Sequence[Message], **options: bool) -> str | None:
        try:
            return self.render(messages, **options)
        except RecordError:
            return None

    def _shows(self, messages: Sequence[Message]) -> bool:
        """Whether the turn that says PROBE is written, and not as if the assistant had said it."""
        text = self._try(messages)
        as_answer = [{"role": "assistant", "content": PROBE} if m["content"] == PROBE else m for m in messages]
        return text is not None and PROBE in text and text != self._try(as_answer)

    def _learn_header(self) -> tuple[str, bool]:
        """The header, and whether only answers show it."""
        asked = [{"role": "user", "content": PROBE}]
        bare = self._try(asked)
        prompt = self._try(asked, add_generation_prompt=True)
        answered = self._try([*asked, {"role": "assistant", "content": _ANSWER}])
        if bare is None or prompt is None:
            return "", False
        header = prompt[self._common_prefix(prompt, bare) :]
        if header or answered is None or not answered.startswith(bare):
            return header, False
        written = answered[len(bare) : answered.index(_ANSWER)] if _ANSWER in answered else ""
        return (written, True) if written.strip() else ("", False)

    def _common_prefix(self, text: str, other: str) -> int:
        """Length of the common prefix, not cut inside a special token of `text`."""
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


def _beginning(error: object) -> str:
    """What an error says, or the beginning of it."""
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
