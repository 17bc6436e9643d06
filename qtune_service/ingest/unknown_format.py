"""Explain why a format is not detected, and what to do: one sentence for each kind of data that people have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError
from qtune_service.ingest.fields import CONTENT_KEYS, PAIRS, ROLE_KEYS, SIDE_COLUMNS, TURN_COLUMNS
from qtune_service.ingest.formats import has_turns
from qtune_service.ingest.messages import parse_turns
from qtune_service.ingest.records import ColumnNames, RecordError

FORMATS = "messages, sharegpt, alpaca, prompt_completion (or --prompt-column and --completion-column), tokenized"
MAX_COLUMNS = 40
Record = Mapping[str, Any]
Explanation = tuple[str, str]
"""The problem after "cannot detect the format of FILE: ", and what to do."""


def explain(records: Sequence[Record]) -> Explanation:
    """Return why the format of some records is not detected."""
    return next(
        (found for record in records for kind in _KINDS if (found := kind(record)) is not None), _of_columns(records)
    )


def unknown_format(name: str, explanation: Explanation) -> DataError:
    """Return the error for a file with an unknown format."""
    what, hint = explanation
    return DataError(f"cannot detect the format of {name}: {what}", hint)


def _of_columns(records: Sequence[Record]) -> Explanation:
    keys = list(dict.fromkeys(chain.from_iterable(records)))
    return (
        f"its records have the columns {listed(keys)}",
        f"Give it with --format, or name columns with --messages-column or --column-map. Formats: {FORMATS}.",
    )


def listed(columns: Sequence[str]) -> str:
    """Return the names of columns, the first ones of many."""
    more = ", ..." if len(columns) > MAX_COLUMNS else ""
    return ", ".join(columns[:MAX_COLUMNS]) + more if columns else "none"


def _preference(record: Record) -> Explanation | None:
    if not record.get("chosen") or not record.get("rejected"):
        return None
    prompt = next((name for name in ("prompt", "question", "instruction", "input") if record.get(name)), None)
    if prompt and not (has_turns(record["chosen"]) and len(record["chosen"]) > 1):
        advice = f"--prompt-column {prompt} --completion-column chosen"
    else:
        advice = "--messages-column chosen"
    return "it is preference data (chosen, rejected)", f"To train on the chosen side, add {advice}."


def _tokens(record: Record) -> Explanation | None:
    if "input_ids" not in record:
        return None
    return (
        "it is tokenized, but no column says which tokens are trained",
        "Add a column loss_mask (0 and 1) or labels (-100 = not trained).",
    )


def _tree(record: Record) -> Explanation | None:
    prompt = record.get("prompt")
    if not isinstance(prompt, Mapping) or "replies" not in prompt:
        return None
    return (
        "it is a tree of messages",
        "Choose one path of each tree and write it as messages, a list of turns with role and content.",
    )


def _pair_with_context(record: Record) -> Explanation | None:
    for prompt, completion in (*PAIRS, ("instruction", "output")):
        if not isinstance(record.get(prompt), str) or record.get(completion) is None:
            continue
        beside = sorted(name for name in SIDE_COLUMNS - {prompt, completion} if record.get(name))
        if not isinstance(record[completion], str):
            what = f"column {completion} holds {_kind(record[completion])}, not text"
            return what, "Write the answer as text, in the words that the model is to learn."
        if beside and isinstance(record[beside[0]], str) and len(beside) == 1:
            maps = {prompt: "instruction", beside[0]: "input", completion: "output"}
            flags = " ".join(f"--column-map {ours}={known}" for ours, known in maps.items() if ours != known)
            what = f"the prompt is in two columns, {prompt} and {beside[0]}"
            return what, f"Join them, or read them as alpaca, one line each: {flags}."
        if beside:
            what = f"its column{'s' if len(beside) > 1 else ''} {', '.join(beside)} would be missing in the prompt"
            return what, f"Write all that the answer needs into {prompt}."
    return None


def _other_turns(record: Record) -> Explanation | None:
    column = next((name for name, value in record.items() if has_turns(value)), None)
    if column is None:
        return None
    if "assistant" not in _roles(record[column]):
        return f"column {column} holds prompts without answers", "Only answers are scored. Add a column of answers."
    return f"its turns are in the column {column}", f"Add --messages-column {column}."


def _roles(turns: Any) -> set[str]:
    """Return the roles of turns; none for turns that cannot be read."""
    try:
        return {message["role"] for message in parse_turns(turns, "").messages}
    except RecordError:
        return {"assistant"}


def _broken_turns(record: Record) -> Explanation | None:
    column = next((name for name in TURN_COLUMNS if record.get(name) is not None), None)
    if column is None:
        return None
    value = record[column]
    turn = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else None
    keys = f"turns with the keys {listed(list(turn))}" if isinstance(turn, Mapping) else _kind(value)
    return (
        f"column {column} holds {keys}, not turns with {ROLE_KEYS[0]} and {CONTENT_KEYS[0]}",
        "Name the keys of its turns with --column-map, such as --column-map who=role --column-map says=content.",
    )


def _plain_text(record: Record) -> Explanation | None:
    if not isinstance(record.get("text"), str):
        return None
    return (
        "it is plain text without prompts and answers",
        "Only answers are scored and pruned. Give chat messages, or a column of prompts and one of answers.",
    )


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", dict: "an object", list: "a list", type(None): "nothing"}
    return kinds.get(type(value), "numbers" if isinstance(value, int | float) else type(value).__name__)


_KINDS: tuple[Callable[[Record], Explanation | None], ...] = (
    _preference, _tokens, _tree, _pair_with_context, _other_turns, _broken_turns, _plain_text,
)  # fmt: skip


def check_names(names: ColumnNames, columns: Collection[str], nested: Collection[str]) -> None:
    """Raise DataError if the job names a column, or a key of turns, that no record has.

    nested: names of nested fields; with an empty name if there may be others.
    """
    for name in (names.prompt, names.completion, names.messages):
        if name is not None and name not in columns:
            raise _missing(name, columns, "column")
    for name in names.columns:
        if name not in columns and name not in nested and "" not in nested:
            raise _missing(name, [*columns, *nested], "column or key of turns")


def nested_in_schema(schema: pa.Schema) -> set[str]:
    """Return the names of nested fields; with an empty name if some fields are text, which may be JSON."""
    return set(chain.from_iterable(_nested_names(field) for field in schema))


def nested_in_records(records: Iterable[Record]) -> set[str]:
    """Return the keys of nested objects; with an empty name if some values are text that may be JSON."""
    return set(chain.from_iterable(_nested_keys(value) for record in records for value in record.values()))


def _nested_names(field: pa.Field[Any]) -> Iterator[str]:
    of = field.type
    if pa.types.is_struct(of):
        for child in of.fields:
            yield child.name
            yield from _nested_names(child)
    elif pa.types.is_list(of) or pa.types.is_large_list(of):
        yield from _nested_names(of.value_field)
    elif field.metadata or isinstance(of, pa.BaseExtensionType):
        yield ""


def _nested_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
        for item in value.values():
            yield from _nested_keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nested_keys(item)
    elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        yield ""


def _missing(name: str, known: Collection[str], what: str) -> DataError:
    near = difflib.get_close_matches(name, [each for each in known if each], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Check the name, and mind upper and lower case."
    return DataError(f"there is no {what} {name!r}; the columns are {listed([each for each in known if each])}", hint)
