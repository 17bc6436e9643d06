"""Plain data as YAML, as far as a dataset card needs it: mappings, lists, text and numbers. Text in doubt is quoted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def to_yaml(value: Mapping[str, Any]) -> str:
    """A block mapping, with a line end."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _entry(f"{_scalar(name)}:", part)
        return
    for part in value:
        if _is_block(part):
            first, *rest = _lines(part)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield f"- {_scalar(part)}"


def _entry(head: str, part: Any) -> Iterator[str]:
    if not _is_block(part):
        yield f"{head} {_scalar(part)}"
        return
    yield head
    indent = "  " if isinstance(part, Mapping) else ""
    yield from (f"{indent}{line}" for line in _lines(part))


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


def _scalar(value: Any) -> str:
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)
