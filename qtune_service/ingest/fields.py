"""Know the columns and turn keys that carry a conversation, and decide what becomes of each.

This is the one place of these names. For each format, a column of a record is one of:
  read       part of the prompt or the mask, such as `messages`, `system`, `tools`, `label`
  unread     known to carry context or a training flag, but not honoured in this format. It is counted in a warning.
  own        any other column. All columns, read ones too, are carried to the output as they are.

Known columns that may change what a record means are never ignored without a word: a record with media is rejected, and
so is an example that is labelled as bad. `layout` decides once for each set of columns. The values are read in
formats.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from qtune_service.config import FormatName
from qtune_service.ingest.records import NO_NAMES, ColumnNames


class Use(StrEnum):
    """The use of a column, as a preview shows it."""

    turns = "turns of the conversation"
    prompt = "prompt"
    answer = "answer, trained on"
    input = "second part of the prompt"
    history = "earlier turns"
    reasoning = "reasoning of the answer"
    system = "system prompt"
    tools = "tools"
    variables = "variables of the chat template"
    media = "media: records that have any are rejected"
    label = "label: false rejects the record"
    rejected = "rejected side of a preference pair, not trained on"
    weight = "0 rejects the record"
    masked_role = "role that is not trained on"
    tokens = "tokens and their mask"
    unread = "not read, counted in a warning"
    own = "own column"


TURN_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
REASONING = ("reasoning_content", "reasoning", "thinking")
REJECTED = ("rejected", "rejected_response", "rejected_responses", "rejected_messages")
"""Columns of the rejected side of preference pairs."""
MASKS = ("loss_mask", "assistant_masks", "completion_mask")
"""Columns of tokenized records that are masks."""
_COMMON: dict[str, Use] = {
    **dict.fromkeys(("system", "system_prompt"), Use.system),
    **dict.fromkeys(("tools", "functions"), Use.tools),
    **dict.fromkeys(("chat_template_kwargs", "documents"), Use.variables),
    **dict.fromkeys(MEDIA, Use.media),
    **dict.fromkeys(("label", "kto_tag"), Use.label),
    **dict.fromkeys(REJECTED, Use.rejected),
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "train", "trainable"), Use.weight),
    "mask": Use.masked_role,
}
_TEXT: dict[str, Use] = {"history": Use.history, "reasoning_content": Use.reasoning}
_ALPACA: dict[str, Use] = {"instruction": Use.prompt, "input": Use.input, "output": Use.answer}
_TOKENIZED: dict[str, Use] = dict.fromkeys(
    ("input_ids", "labels", "attention_mask", "position_ids", *MASKS), Use.tokens
)
PROMPT_TEXTS = frozenset({"instruction", "input", "output", "chosen"} | {name for pair in PAIRS for name in pair})
"""Known columns of text. They are unread only where their text is not in the conversation."""
CONTEXT = frozenset({"context", "passage", "choices", "options", "history", "few_shot_examples", "response_format"})
"""Known columns of context that no or few formats read."""
_UNREAD = frozenset({*TURN_COLUMNS, *PROMPT_TEXTS, *CONTEXT, *REASONING, *MASKS, "labels", "loss"})
SIDE_COLUMNS = frozenset({"context", "input", "choices", "options", "passage"})
"""Columns beside a pair that would be missing in its prompt, so that the pair is not detected."""

ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
SHOWN_KEYS = frozenset({"name", "channel", "recipient", "tool_plan", "prefix", "documents", "citations"})
"""Keys of turns that a template may show. If it does not, the record is counted in a warning."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The uses of the columns of a record."""

    uses: Mapping[str, Use]
    turns: str | None
    """Column of the turns; None for formats without one."""
    pair: tuple[str, str] | None
    """Columns of prompt and answer in the format prompt_completion."""
    beside: tuple[tuple[str, Use], ...]
    """Known columns beside turns, prompt and answer, which must be looked at."""


@lru_cache(maxsize=4096)
def layout(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: tuple[str, ...],
    pair: tuple[str | None, str | None] = (None, None),
) -> Layout:
    """Return the uses of a record's columns. pair: the prompt and completion columns that the job names."""
    turns = _turn_column(format, columns) if format in ("messages", "sharegpt") else None
    found = _pair(columns, pair) if format == "prompt_completion" else None
    uses = {name: _use(format, name, turns, found) for name in columns}
    main = {turns, *(found or ())} | (set(_ALPACA) if format == "alpaca" else set())
    beside = tuple((name, use) for name, use in uses.items() if use is not Use.own and name not in main)
    return Layout(uses, turns, found, beside)


def _use(format: FormatName, name: str, turns: str | None, pair: tuple[str, str] | None) -> Use:  # noqa: A002
    if format == "tokenized":
        return Use.tokens if name in _TOKENIZED else Use.label if name in ("label", "kto_tag") else Use.own
    if name == turns:
        return Use.turns
    if pair is not None and name in pair:
        return Use.prompt if name == pair[0] else Use.answer
    if format == "alpaca" and name in _ALPACA:
        return _ALPACA[name]
    if turns is None and name in _TEXT:
        return _TEXT[name]
    return _COMMON.get(name) or (Use.unread if name in _UNREAD else Use.own)


def _turn_column(format: FormatName, columns: Sequence[str]) -> str:  # noqa: A002
    known = TURN_COLUMNS if format == "messages" else ("conversations", *TURN_COLUMNS)
    return next((name for name in known if name in columns), known[0])


def _pair(columns: Sequence[str], named: tuple[str | None, str | None]) -> tuple[str, str]:
    if named[0] is not None and named[1] is not None:
        return named[0], named[1]
    return next((pair for pair in PAIRS if pair[0] in columns and pair[1] in columns), PAIRS[0])


def known_names(record: Mapping[str, object], names: ColumnNames) -> Mapping[str, object]:
    """Return a record with the names that the job maps replaced by the known names."""
    renamed = dict(names.columns)
    if names.messages is not None:
        renamed[names.messages] = "messages"
    if not renamed or not any(name in record for name in renamed):
        return record
    taken = {renamed[name] for name in record if name in renamed}
    others = {name: value for name, value in record.items() if name not in renamed and name not in taken}
    return {renamed[name]: value for name, value in record.items() if name in renamed} | others


def uses(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: Iterable[str],
    names: ColumnNames = NO_NAMES,
) -> dict[str, Use]:
    """Return the use of each column of a file."""
    known = {name: next(iter(known_names({name: None}, names))) for name in columns}
    found = layout(format, tuple(known.values()), (names.prompt, names.completion)).uses
    return {name: found[known_name] for name, known_name in known.items()}


def used_columns(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: Iterable[str],
    names: ColumnNames = NO_NAMES,
) -> frozenset[str]:
    """Return the columns of a file that are looked at in a format. The others are only carried along."""
    return frozenset(name for name, use in uses(format, columns, names).items() if use is not Use.own)
