"""Detect dataset formats, and parse records into conversations or tokens.

Detection uses the names and types of columns. Each record votes for the first format it fits, in this order: tokenized,
messages, sharegpt, prompt_completion, alpaca, then well-known column pairs (`PAIRS`). The format with the most votes
wins, so that a few broken rows do not decide. Without a vote the user must name the format.
- A pair is not detected next to a column such as `context` or `input`, which would be missing in the prompt. A guess
  would score answers without their questions. Such data needs explicit columns.
- Trees, preference pairs and multiple choice are not supported and stay undetected.
- A `conversations` column may hold from/value or role/content turns.
- A prompt that is a list of messages is context: only assistant turns of the completion are trained.
- alpaca joins instruction and input with a newline. History turns are trained like any assistant turn.

Tokenized records have `input_ids` with `loss_mask`, or with `labels`, where -100 is not trained. Nothing is repaired.
Lists of different lengths, padding, or labels that differ from the tokens (such as labels shifted by one) are errors,
because their scores would belong to other text. If a mask and labels are both present, as in our own output, they must
agree. Position 0 has no prediction and is never trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.config import FormatName
from qtune_service.ingest.messages import ROLES, finish, flatten_content, parse_tools, parse_turns
from qtune_service.ingest.records import NO_NAMES, ColumnNames, Conversation, Message, RecordError, Tokenized

IGNORE_LABEL = -100
INT32_MAX = np.iinfo(np.int32).max
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
)
_COLUMNS: dict[str, frozenset[str]] = {
    "messages": frozenset({"messages", "tools"}),
    "sharegpt": frozenset({"conversations", "system", "tools"}),
    "alpaca": frozenset({"instruction", "input", "output", "system", "history"}),
    "tokenized": frozenset({"input_ids", "loss_mask", "labels", "attention_mask"}),
}
SIDE_COLUMNS = frozenset(
    {"context", "input", "system", "system_prompt", "history", "choices", "options", "passage", "tools"}
)


def detect_format(records: Sequence[Mapping[str, Any]], names: ColumnNames = NO_NAMES) -> FormatName | None:
    """Return the format of a file by its first valid records, or None. Named columns take precedence."""
    if names.prompt is not None and names.completion is not None:
        fits = any(names.prompt in record and names.completion in record for record in records)
        return "prompt_completion" if fits else None
    votes = Counter(name for record in records if (name := _format_of(record)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def _format_of(record: Mapping[str, Any]) -> FormatName | None:
    if _is_list(record.get("input_ids")) and ("loss_mask" in record or "labels" in record):
        return "tokenized"
    if _has_turns(record.get("messages"), ("role",)):
        return "messages"
    if _has_turns(record.get("conversations"), ("from", "role")):
        return "sharegpt"
    if _is_prompt(record.get("prompt")) and _is_prompt(record.get("completion")):
        return "prompt_completion"
    if isinstance(record.get("instruction"), str) and isinstance(record.get("output"), str):
        return "alpaca"
    return "prompt_completion" if _find_pair(record) else None


def _has_turns(turns: Any, keys: tuple[str, ...]) -> bool:
    if not _is_list(turns) or len(turns) == 0 or not isinstance(turns[0], Mapping):
        return False
    return any(turns[0].get(key) in ROLES for key in keys if isinstance(turns[0].get(key), str))


def _is_list(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or _has_turns(value, ("role",))


def _find_pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    for prompt, completion in PAIRS:
        if isinstance(record.get(prompt), str) and isinstance(record.get(completion), str):
            left_out = {c for c in SIDE_COLUMNS - {prompt, completion} if record.get(c)}
            return None if left_out else (prompt, completion)
    return None


def used_columns(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: Iterable[str],
    names: ColumnNames = NO_NAMES,
) -> frozenset[str]:
    """Return the columns that the format reads. All other columns are carried along."""
    columns = frozenset(columns)
    if format == "prompt_completion":
        named = (names.prompt, names.completion) if names.prompt and names.completion else None
        pair = named or next((p for p in PAIRS if columns.issuperset(p)), ("prompt", "completion"))
        return columns & {*pair, "tools"}
    return columns & _COLUMNS[format]


def to_conversation(
    record: Mapping[str, Any],
    format: FormatName,  # noqa: A002 - the name that users know
    names: ColumnNames = NO_NAMES,
) -> Conversation | Tokenized:
    """Parse one record. Raises RecordError if it does not fit its format."""
    match format:
        case "messages":
            messages, trained = parse_turns(_require(record, "messages"), "messages")
            return finish(messages, trained, parse_tools(record.get("tools"), "tools"))
        case "sharegpt":
            return _from_sharegpt(record)
        case "alpaca":
            return _from_alpaca(record)
        case "prompt_completion":
            return _from_pair(record, names.prompt, names.completion)
        case "tokenized":
            return parse_tokens(record)
        case "auto":
            raise ValueError("'auto' is not the format of a record: call detect_format first")


def _require(record: Mapping[str, Any], column: str) -> Any:
    value = record.get(column)
    if value is None:
        have = ", ".join(map(str, record)) or "none"
        raise RecordError("missing_field", f"no value in column {column!r}; the record's columns are {have}")
    return value


def _optional_text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    return "" if value is None else flatten_content(value, column)


def _from_sharegpt(record: Mapping[str, Any]) -> Conversation:
    messages, trained = parse_turns(_require(record, "conversations"), "conversations")
    system = _optional_text(record, "system")
    if system:
        if any(m["role"] == "system" for m in messages):
            raise RecordError("conflicting_system", "both the column system and a turn give a system prompt")
        messages.insert(0, {"role": "system", "content": system})
        trained.insert(0, False)
    return finish(messages, trained, parse_tools(record.get("tools"), "tools"))


def _from_alpaca(record: Mapping[str, Any]) -> Conversation:
    messages: list[Message] = []
    if system := _optional_text(record, "system"):
        messages.append({"role": "system", "content": system})
    for number, pair in enumerate(record.get("history") or ()):
        if not _is_list(pair) or len(pair) != 2:
            raise RecordError("bad_type", f"history[{number}] must be a pair of user and assistant text")
        messages += _exchange(pair[0], pair[1], f"history[{number}]")
    instruction = flatten_content(_require(record, "instruction"), "instruction")
    prompt = "\n".join(part for part in (instruction, _optional_text(record, "input")) if part)
    messages += _exchange(prompt, _require(record, "output"), "output")
    return finish(messages, [m["role"] == "assistant" for m in messages], None)


def _exchange(user: Any, assistant: Any, where: str) -> list[Message]:
    return [
        {"role": "user", "content": flatten_content(user, where)},
        {"role": "assistant", "content": flatten_content(assistant, where)},
    ]


def _from_pair(record: Mapping[str, Any], prompt_column: str | None, completion_column: str | None) -> Conversation:
    if prompt_column is None or completion_column is None:
        known = (pair for pair in PAIRS if all(record.get(column) is not None for column in pair))
        prompt_column, completion_column = next(known, PAIRS[0])
    context, _ = _as_turns(_require(record, prompt_column), "user", prompt_column)
    answer, trained = _as_turns(_require(record, completion_column), "assistant", completion_column)
    tools = parse_tools(record.get("tools"), "tools")
    return finish(context + answer, [False] * len(context) + trained, tools)


def _as_turns(value: Any, role: str, where: str) -> tuple[list[Message], list[bool]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}], [role == "assistant"]
    return parse_turns(value, where)


def parse_tokens(record: Mapping[str, Any]) -> Tokenized:
    """Parse one record of the tokenized format. Raises RecordError."""
    ids = _integers(record.get("input_ids"), "input_ids")
    if len(ids) and (ids.min() < 0 or ids.max() > INT32_MAX):
        raise RecordError("bad_token_id", f"input_ids must be between 0 and {INT32_MAX}, got {ids.min()}..{ids.max()}")
    masks = [mask for mask in (_mask_column(record, ids), _label_column(record, ids)) if mask is not None]
    if not masks:
        raise RecordError("missing_field", "input_ids need a column loss_mask or labels beside them")
    if len(masks) == 2 and not np.array_equal(masks[0], masks[1]):
        raise RecordError("mask_conflict", "loss_mask and labels disagree on what is trained")
    attention = record.get("attention_mask")
    if attention is not None and not _same_length(_integers(attention, "attention_mask"), ids, "attention_mask").all():
        raise RecordError("padded", "attention_mask holds zeros; remove the padding from input_ids")
    return Tokenized(ids.astype(np.int32), masks[0])


def _mask_column(record: Mapping[str, Any], ids: NDArray[np.int64]) -> NDArray[np.int8] | None:
    if record.get("loss_mask") is None:
        return None
    mask = _same_length(_integers(record["loss_mask"], "loss_mask", allow_bool=True), ids, "loss_mask")
    if not np.isin(mask, (0, 1)).all():
        raise RecordError("bad_type", "loss_mask must hold 0 and 1 only")
    return _untrain_first(mask)


def _label_column(record: Mapping[str, Any], ids: NDArray[np.int64]) -> NDArray[np.int8] | None:
    if record.get("labels") is None:
        return None
    labels = _same_length(_integers(record["labels"], "labels"), ids, "labels")
    trained = labels != IGNORE_LABEL
    if not np.array_equal(labels[trained], ids[trained]):
        raise RecordError("labels_mismatch", "labels differ from input_ids where they are trained; shifted labels?")
    return _untrain_first(trained)


def _untrain_first(mask: NDArray[Any]) -> NDArray[np.int8]:
    """Clear the mask at position 0, which has no prediction."""
    out = mask.astype(np.int8)
    out[:1] = 0
    return out


def _integers(value: Any, column: str, *, allow_bool: bool = False) -> NDArray[np.int64]:
    if value is None:
        raise RecordError("missing_field", f"no value in column {column!r}")
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
        raise RecordError("bad_type", f"{column} must be a list of integers, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise RecordError("bad_type", f"{column} must be a flat list of integers") from error
    if len(value) == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in ("iub" if allow_bool else "iu"):
        raise RecordError("bad_type", f"{column} must be a flat list of integers")
    return array.astype(np.int64)


def _same_length(values: NDArray[np.int64], ids: NDArray[np.int64], column: str) -> NDArray[np.int64]:
    if len(values) != len(ids):
        raise RecordError("length_mismatch", f"{column} has {len(values)} entries, input_ids {len(ids)}")
    return values
