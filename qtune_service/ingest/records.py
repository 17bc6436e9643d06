"""What a record becomes on its way to tokens, and why one is refused.

A record is a plain dict of columns. A `RecordError` concerns one record and never ends a job: the record goes to
the rejected rows with `reason_code`, which is stable and fit for counting, and `detail`, which is for people.

Reason codes:
  shape     missing_field, bad_type, bad_role, bad_flag, bad_tool_call, bad_tools, conflicting_system
  turns     no_assistant_turn, no_trained_turn, empty_response
  tokens    length_mismatch, bad_token_id, mask_conflict, labels_mismatch, padded
  encoding  template_error, context_dropped, mask_not_verified, not_unicode, too_long, no_trained_tokens,
            token_out_of_vocab
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Message: TypeAlias = dict[str, Any]
"""One turn in the form that chat templates read: role, content, and what goes with them."""


class RecordError(Exception):
    """One record cannot be used. Picklable: it holds its arguments only."""

    def __init__(self, reason_code: str, detail: str) -> None:
        super().__init__(reason_code, detail)
        self.reason_code = reason_code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason_code}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in the chat-template form. Only assistant turns are ever trained."""

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    trained: tuple[bool, ...]  # one flag a message


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A record that came as tokens. `loss_mask[0]` is 0."""

    input_ids: NDArray[np.int32]  # (T,)
    loss_mask: NDArray[np.int8]  # (T,) 1 = trained
