"""Name the columns and turn keys that carry a conversation, and their uses.

This is the one place of these names. For each format, a column of a record is one of:
  read       part of the prompt or the mask, such as `messages`, `system`, `tools`, `label`
  unread     known to carry context or a training flag, but not honoured in this format. It is counted in a warning.
  own        any other column. All columns, read ones too, are carried to the output as they are.

Known columns that may change what a record means are never ignored without a word: a record with media is rejected, and
so is an example that is labelled as bad. formats.py decides by these names which column has which use, and
context_columns.py applies them.
"""

from __future__ import annotations

from enum import StrEnum


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
    ("question", "response"),
    ("query", "answer"),
    ("prompt", "answer"),
    ("instruction", "answer"),
    ("prompt", "output"),
    ("inputs", "targets"),
    ("user", "assistant"),
)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "reasoning_details")
LABELS = ("label", "kto_tag")
REJECTED = ("rejected", "rejected_response", "rejected_responses", "rejected_messages")
"""Columns of the rejected side of preference pairs."""
MASKS = ("loss_mask", "assistant_masks", "completion_mask")
"""Columns of tokenized records that are masks."""
EVERY_FORMAT: dict[str, Use] = {
    **dict.fromkeys(("system", "system_prompt", "system_message"), Use.system),
    **dict.fromkeys(("tools", "functions"), Use.tools),
    **dict.fromkeys(("chat_template_kwargs", "documents"), Use.variables),
    **dict.fromkeys(MEDIA, Use.media),
    **dict.fromkeys(LABELS, Use.label),
    **dict.fromkeys(REJECTED, Use.rejected),
    **dict.fromkeys(("weight", "loss_weight", "sample_weight", "train", "trainable"), Use.weight),
    "mask": Use.masked_role,
}
TEXT_FORMATS: dict[str, Use] = {"history": Use.history, "reasoning_content": Use.reasoning}
ALPACA: dict[str, Use] = {"instruction": Use.prompt, "input": Use.input, "output": Use.answer}
TOKENIZED: dict[str, Use] = dict.fromkeys(("input_ids", "labels", "attention_mask", "position_ids", *MASKS), Use.tokens)
PROMPT_TEXTS = frozenset({"instruction", "input", "output", "chosen"} | {name for pair in PAIRS for name in pair})
"""Known columns of text. They are unread only where their text is not in the conversation."""
CONTEXT = frozenset({"context", "passage", "choices", "options", "history", "few_shot_examples", "response_format"})
"""Known columns of context that no or few formats read."""
UNREAD = frozenset({*TURN_COLUMNS, *PROMPT_TEXTS, *CONTEXT, *REASONING, *MASKS, "labels", "loss"})
SIDE_COLUMNS = frozenset({"context", "input", "choices", "options", "passage"})
"""Columns beside a pair that would be missing in its prompt, so that the pair is not detected."""

ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
SHOWN_KEYS = frozenset({"name", "channel", "recipient", "tool_plan", "prefix", "documents", "citations"})
"""Keys of turns that a template may show. If it does not, the record is counted in a warning."""
KNOWN_COLUMNS = frozenset({*EVERY_FORMAT, *TEXT_FORMATS, *ALPACA, *TOKENIZED, *UNREAD})
