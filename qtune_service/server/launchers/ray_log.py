"""A driver's log as Ray hands it over: all of it in one JSON object, `{"logs": "..."}`; read without holding it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

_HEAD = re.compile(rb'\s*\{\s*"logs"\s*:\s*"')
_WHOLE = re.compile(
    rb"(?:"
    rb'[^"\\]++'
    rb"|\\[^u]"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a character of two halves stays together
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    rb")*+"  # possessive: nothing is kept to go back to
)


def unescaped(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The log's bytes. What comes at the end of a block and is not whole waits for the next one.

    Ray escapes all that is not ASCII, so no block splits a character otherwise.
    """
    buffer, is_inside = b"", False
    for block in blocks:
        buffer += block
        if not is_inside:
            if (head := _HEAD.match(buffer)) is None:
                continue
            buffer, is_inside = buffer[head.end() :], True
        end = _end(buffer)
        if end:
            yield json.loads(b'"%s"' % buffer[:end]).encode()
        buffer = buffer[end:]
        if buffer.startswith(b'"'):
            return


def _end(buffer: bytes) -> int:
    match = _WHOLE.match(buffer)
    return match.end() if match else 0
