"""Types of parsed records, and the reasons for rejecting one.

A record is a plain dict of columns. A `RecordError` concerns one record and never ends a job. The record is added to
the rejected rows with `reason_code`, which is stable, and `detail`, a message.

Reason codes:
  shape     missing_field, bad_type, bad_role, bad_flag, bad_tool_call, bad_tools, not_text, negative_example
  turns     no_assistant_turn, no_trained_turn, empty_response
  tokens    length_mismatch, bad_token_id, mask_conflict, labels_mismatch, padded, packed
  encoding  template_error, context_dropped, mask_not_verified, not_unicode, too_long, no_trained_tokens,
            token_out_of_vocab
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import InputSpec

Message: TypeAlias = dict[str, Any]
"""One turn in chat-template form: role, content, and optional keys."""


HINTS: dict[str, str] = {
    "bad_json": "Each record is one JSON object, on one line where the file is JSON lines.",
    "bad_row": "A row of CSV has as many cells as the header. Quote cells with delimiters or line breaks.",
    "not_utf8": "Write the file as UTF-8.",
    "not_an_object": "A record is a JSON object with its columns by name.",
    "missing_field": "Name the columns with `prompt_column` and `completion_column`, or choose another format.",
    "bad_type": "The column holds another type than its format promises.",
    "bad_role": "Say what the role is with `role_map`, such as bot=assistant.",
    "not_text": "Records with images, audio or video cannot be scored by a text model. Remove them, or their media.",
    "negative_example": "Kept samples are trained on: give good answers only. Of a preference pair, name the side to "
    "train on, such as `completion_column` chosen.",
    "bad_flag": "A turn's training flag is true or false, 0 or 1.",
    "bad_tool_call": "A call has a function with a name and arguments.",
    "bad_tools": "Tools are a list of JSON schemas of functions.",
    "no_assistant_turn": "There is nothing to train on without an answer.",
    "no_trained_turn": "Every answer is flagged as not to be trained on.",
    "empty_response": "There is nothing to train on in an empty answer.",
    "length_mismatch": "input_ids and the mask or labels must have the same length.",
    "bad_token_id": "Token ids are whole numbers from 0.",
    "mask_conflict": "loss_mask and labels say different things.",
    "labels_mismatch": "Labels are the token itself, or -100.",
    "padded": "Leave out padding.",
    "packed": "Unpack rows that hold several samples.",
    "template_error": "The chat template refuses such turns; give another one with `chat_template`.",
    "context_dropped": "The chat template leaves out a turn; give another one with `chat_template`.",
    "mask_not_verified": "Give a template with {% generation %} markers, or trl:NAME of TRL, by `chat_template`.",
    "not_unicode": "The text holds half a surrogate pair.",
    "too_long": "Raise `max_model_len` if the model allows it, or set `overlong` to truncate.",
    "no_trained_tokens": "All that is trained lies behind the length limit, or is empty.",
    "token_out_of_vocab": "These token ids are of another tokenizer.",
}
"""Hint for each reason code."""


class RecordError(Exception):
    """A record that cannot be used. Picklable, since it holds only its arguments."""

    def __init__(self, reason_code: str, detail: str) -> None:
        super().__init__(reason_code, detail)
        self.reason_code = reason_code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason_code}: {self.detail}"


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """The names that a job gives to columns, keys of turns and roles. Empty where the known names apply."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the data -> known name, for columns and keys of turns."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role in the data -> system, user, assistant or tool."""

    def role_of(self, role: str) -> str:
        """Return the role that a name stands for, in any case; an unknown name in lower case."""
        plain = role.strip().lower()
        if not self.roles:
            return plain
        return self.roles.get(role) or {name.lower(): known for name, known in self.roles.items()}.get(plain, plain)

    @classmethod
    def of(cls, spec: InputSpec) -> Self:
        """Return the names of a spec."""
        return cls(spec.prompt_column, spec.completion_column, spec.messages_column, spec.column_map, spec.role_map)


NO_NAMES = ColumnNames()
"""The names of a job that gives none."""

Range = tuple[int, int, bool]
"""Characters [start, stop) of a turn's content, and whether they are trained."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in the chat-template form. Only assistant turns are ever trained."""

    messages: tuple[Message, ...]
    """Reasoning is always in the key `reasoning_content`, and calls in `tool_calls` with arguments as objects."""
    tools: list[dict[str, Any]] | None
    trained: tuple[bool, ...]  # one flag a message
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of this record for the template: `chat_template_kwargs`, and `documents`."""
    ranges: Mapping[int, tuple[Range, ...]] = field(default_factory=dict)
    """Index of a trained turn -> parts of its content that are (not) trained. Other characters are trained."""
    first_turn: int = 0
    """Index of the record's first own turn: 1 after a system turn from a column. Errors count turns from it."""
    notes: tuple[str, ...] = ()
    """What the record says and the sample does not contain, each a clause that is counted over records."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A tokenized record. `loss_mask[0]` is 0."""

    input_ids: NDArray[np.int32]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) 1 = trained
