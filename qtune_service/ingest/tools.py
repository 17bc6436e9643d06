"""Convert tool descriptions and tool calls of datasets to the OpenAI form of chat templates.

A call becomes `{"type": "function", "function": {"name": ..., "arguments": {...}}}`. Arguments are an object, because
most templates print `arguments | tojson`. If they were JSON text, that is kept (`Arguments.text`) for templates that
print the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.ingest.records import RecordError

_ARGUMENTS = ("arguments", "args", "input", "parameters")
_SCHEMAS = ("input_schema", "inputSchema")


class Arguments(dict[str, Any]):
    """Arguments of a call, with the JSON text that they were parsed from."""

    text = ""


def parse_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Parse calls into the OpenAI form, from that form, bare name/arguments objects, or JSON text of either."""
    if isinstance(value, str):
        value = parse_json(value, "bad_tool_call", f"{where}: a call must be JSON with name and arguments")
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes) or not calls:
        raise RecordError("bad_tool_call", f"{where}: a call must be an object or a list of them")
    return [_parse_call(call, where) for call in calls]


def _parse_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = parse_json(call, "bad_tool_call", f"{where}: a call must be JSON with name and arguments")
    if not isinstance(call, Mapping):
        raise RecordError("bad_tool_call", f"{where}: a call must be an object, got {type(call).__name__}")
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RecordError("bad_tool_call", f"{where}: a call has no name")
    arguments = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), None)
    parsed = {"type": "function", "function": {"name": name, "arguments": _parse_arguments(arguments, name, where)}}
    call_id = next((call[key] for key in ("id", "call_id", "toolUseId") if call.get(key) is not None), None)
    return parsed if call_id is None else {"id": call_id, **parsed}


def _parse_arguments(value: Any, name: str, where: str) -> dict[str, Any]:
    text = value if isinstance(value, str) else ""
    if text:
        value = parse_json(text, "bad_tool_call", f"{where}: arguments of {name} are not JSON")
    value = value or {}
    if not isinstance(value, Mapping):
        raise RecordError("bad_tool_call", f"{where}: arguments of {name} must be an object")
    if not text:
        return dict(value)
    arguments = Arguments(value)
    arguments.text = text
    return arguments


def parse_tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """Parse tool descriptions into `{"type": "function", "function": {...}}`; None without tools."""
    if isinstance(value, str):
        value = parse_json(value, "bad_tools", f"{where} is not JSON") if value.strip() else None
    if not value:
        return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError("bad_tools", f"{where} must be a list, or JSON text of one")
    return [_parse_tool(tool, where) for tool in value]


def _parse_tool(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = parse_json(tool, "bad_tools", f"{where} has an entry that is not JSON")
    wrapper = tool if isinstance(tool, Mapping) else {}
    bare = wrapper.get("function") or wrapper.get("toolSpec") or wrapper
    if isinstance(bare, str):
        bare = parse_json(bare, "bad_tools", f"{where} has a function that is not JSON")
    if not isinstance(bare, Mapping) or not isinstance(bare.get("name"), str):
        raise RecordError("bad_tools", f"{where} has an entry without a name")
    function = dict(bare)
    for key in _SCHEMAS:
        if key in function and "parameters" not in function:
            schema = function.pop(key)
            function["parameters"] = schema.get("json", schema) if isinstance(schema, Mapping) else schema
    if isinstance(function.get("parameters"), str) and function["parameters"].strip():
        problem = f"{where}: parameters of {function['name']} are not JSON"
        function["parameters"] = parse_json(function["parameters"], "bad_tools", problem)
    if "function" in wrapper:
        return {**wrapper, "function": function}
    return {"type": "function", "function": function}


def parse_json(text: str, reason_code: str, problem: str) -> Any:
    """Parse JSON text. Raises RecordError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(reason_code, f"{problem} ({error})") from error
