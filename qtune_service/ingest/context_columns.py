"""Read the known columns beside turns, prompt and answer: system prompt, tools, variables, media, labels, weights.

What such a column says reaches the prompt or the mask, or the record is rejected, or a note counts it. fields.py names
the columns and their uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qtune_service.ingest.content import flatten_content, is_filled
from qtune_service.ingest.fields import PROMPT_TEXTS, REJECTED, Use
from qtune_service.ingest.messages import Turns
from qtune_service.ingest.records import ColumnNames, RecordError
from qtune_service.ingest.tools import parse_json, parse_tools


@dataclass(slots=True)
class _Found:
    """What the columns of a record say."""

    turns: Turns
    record: Mapping[str, Any]
    names: ColumnNames
    systems: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)


def check_side(names: ColumnNames) -> None:
    """Raise RecordError if the job names the rejected side of preference pairs as what to train on."""
    for name in (names.completion, names.messages):
        if name in REJECTED:
            raise RecordError("negative_example", f"column {name} is the rejected side of a preference pair")


def read_columns(
    turns: Turns, record: Mapping[str, Any], columns: Sequence[tuple[str, Use]], names: ColumnNames
) -> Mapping[str, Any]:
    """Apply the known columns to the turns. Return the record's variables for the template. Raises RecordError."""
    found = _Found(turns, record, names)
    for name, use in columns:
        value = record[name]
        is_empty = isinstance(value, str | Sequence | Mapping | np.ndarray) and len(value) == 0
        if value is not None and not is_empty and use in _READERS:
            _READERS[use](found, name, value)
    _add_system(turns, found.systems)
    return found.variables


def _read_system(found: _Found, name: str, value: Any) -> None:
    if isinstance(value, Mapping) and "content" in value:
        value = value["content"]
    found.systems[name] = flatten_content(value, f"column {name}")


def _add_system(turns: Turns, systems: Mapping[str, str]) -> None:
    """Put the system prompt of a column before the turns. A system turn of the record takes precedence."""
    texts = list(dict.fromkeys(text for text in systems.values() if text.strip()))
    if len(texts) > 1:
        turns.notes.append(f"the columns {' and '.join(systems)} differ; `{next(iter(systems))}` is used")
    if not texts:
        return
    first = turns.messages[0] if turns.messages else None
    if first is None or first["role"] not in ("system", "developer"):
        turns.insert_system(texts[0])
    elif not first["content"].strip():
        first["content"] = texts[0]
    elif first["content"].strip() != texts[0].strip():
        turns.notes.append(f"the column `{next(iter(systems))}` and the system turn differ; the turn is used")


def _read_tools(found: _Found, name: str, value: Any) -> None:
    found.turns.add_tools(parse_tools(value, name))


def _read_variables(found: _Found, name: str, value: Any) -> None:
    if isinstance(value, str):
        value = parse_json(value, "bad_type", f"column {name} is text that is not JSON")
    if name == "documents":
        found.variables["documents"] = value
    elif isinstance(value, Mapping):
        found.variables |= {k: v for k, v in value.items() if v is not None and k not in found.variables}
    elif value is not None:
        raise RecordError("bad_type", f"{name} must be an object, got {type(value).__name__}")


def _refuse_media(_found: _Found, name: str, value: Any) -> None:
    if is_filled(value):
        raise RecordError("not_text", f"the record has {name}; only text can be scored")


def _of_text(value: Any) -> Any:
    """Return the boolean or number that a text writes, as in CSV files; other values unchanged."""
    if not isinstance(value, str):
        return value
    named = {"true": True, "false": False}
    try:
        return named[value.strip().lower()] if value.strip().lower() in named else float(value)
    except ValueError:
        return value


def _read_label(found: _Found, name: str, value: Any) -> None:
    value = _of_text(value)
    if value is False:
        raise RecordError("negative_example", f"its {name} is false: it is an example of a bad answer")
    if value is not True:
        found.turns.notes.append(f"the column `{name}` is not true or false, so it is not read as a label")


def _check_pair(found: _Found, name: str, _value: Any) -> None:
    """Raise RecordError for a preference pair of which the job does not name the side to train on."""
    named = (found.names.completion, found.names.messages, *found.names.columns)
    is_pair = name != "rejected" or found.record.get("chosen") or "chosen" in named
    if is_pair and not any(named):
        what = f"the record is a preference pair: it has the column {name}"
        raise RecordError("negative_example", what + _advice(found))
    if not is_pair:
        _note_unread(found, name, _value)


def _advice(found: _Found) -> str:
    """Return how to read the chosen side of a preference pair, if it is known."""
    record = found.record
    prompt = next((name for name in ("conversations", "messages", "prompt", "question") if record.get(name)), None)
    if not record.get("chosen") or prompt is None:
        return ""
    return f"; to train on the chosen side, name `prompt_column` {prompt} and `completion_column` chosen"


def _read_weight(found: _Found, name: str, value: Any) -> None:
    value = _of_text(value)
    if value in (0, False):
        raise RecordError("no_trained_turn", f"its column {name} is {value!r}")
    if value not in (1, True):
        found.turns.notes.append(f"the column `{name}` is not 0 or 1, and weights of samples are not applied")


def _read_masked_role(found: _Found, name: str, value: Any) -> None:
    if not (isinstance(value, str) and value.strip().lower() in ("user", "human")):
        found.turns.notes.append(f"the column `{name}` is not read; only assistant turns are trained")


def _note_unread(found: _Found, name: str, value: Any) -> None:
    """Count a known column that the format does not read, unless its text is in the conversation anyway."""
    is_text = name in PROMPT_TEXTS and isinstance(value, str)
    if is_text and (not value.strip() or any(value.strip() in turn["content"] for turn in found.turns.messages)):
        return
    found.turns.notes.append(f"the column `{name}` is not read, so the prompt does not contain it")


_READERS: Mapping[Use, Callable[[_Found, str, Any], None]] = {
    Use.system: _read_system,
    Use.tools: _read_tools,
    Use.variables: _read_variables,
    Use.media: _refuse_media,
    Use.label: _read_label,
    Use.rejected: _check_pair,
    Use.weight: _read_weight,
    Use.masked_role: _read_masked_role,
    Use.unread: _note_unread,
}
