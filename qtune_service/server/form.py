"""The form of a new job. Names, texts, limits and defaults come from config.py, by the schema of a request.

A field is a control with the dotted name that the API's errors use, so that an error is shown at its control. The
template places some fields by hand and lists the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from qtune_service.job_fields import job_fields, on_page
from qtune_service.wire import JobRequest

Kind = Literal["text", "lines", "pairs", "number", "checkbox", "choice"]
PARTS = ("input", "model", "prune", "engine", "limits", "output")


@dataclass(frozen=True, slots=True)
class FormField:
    """A control of the form."""

    name: str
    label: str
    help: str
    kind: Kind
    default: Any
    is_required: bool
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    step: str
    flag: str | None
    placeholder: str | None = None
    maps_to_numbers: bool = False

    @property
    def id(self) -> str:
        """Return the id of the element."""
        return self.name.replace(".", "-")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return the attributes of the element; None leaves one out. The script reads those that begin with data-."""
        common: dict[str, Any] = {
            "id": self.id,
            "data-field": self.name,
            "data-kind": self.kind,
            "data-default": json.dumps(self.default),
            "data-flag": self.flag,
            "data-numeric": "" if self.maps_to_numbers else None,
            "placeholder": self.placeholder,
            "aria-describedby": f"{self.id}-help {self.id}-error",
            "required": "" if self.is_required else None,
        }
        return common | self._typed()

    def _typed(self) -> dict[str, Any]:
        if self.kind == "number":
            return {"type": "number", "step": self.step, "min": self.minimum, "max": self.maximum}
        return {"type": self.kind} if self.kind in ("text", "checkbox") else {}


@cache
def form_fields() -> Mapping[str, FormField]:
    """Return all fields of a request by their dotted names."""
    schema = JobRequest.model_json_schema()
    found = [_field("name", schema["properties"]["name"], is_required=False)]
    for part in PARTS:
        body = _body(schema["properties"][part], schema["$defs"])
        required = body.get("required", ()) if part in schema["required"] else ()
        found += [
            _field(f"{part}.{name}", field, is_required=name in required) for name, field in body["properties"].items()
        ]
    return {field.name: field for field in found}


def _body(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a part, which may be null."""
    reference = next(option["$ref"] for option in part.get("anyOf", [part]) if "$ref" in option)
    body: Mapping[str, Any] = definitions[reference.rpartition("/")[2]]
    return body


def _field(name: str, schema: Mapping[str, Any], *, is_required: bool) -> FormField:
    known = job_fields().get(name)  # None for the name of the job
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    body = {**schema, **options[0]}
    kind = _kind(name, body)
    bounds = [body.get(key) for key in ("minimum", "exclusiveMinimum") if body.get(key) is not None]
    return FormField(
        name=name,
        label=known.label if known else name.capitalize(),
        help=on_page(known.help) if known else "",
        kind=kind,
        default=schema.get("default", {} if kind == "pairs" else None),
        is_required=is_required,
        choices=tuple(body.get("enum", ())),
        minimum=bounds[0] if bounds else None,
        maximum=body.get("maximum"),
        step="1" if body.get("type") == "integer" else "any",
        flag=None if known is None else "" if known.is_argument else known.option,
        placeholder=known.flag.metavar if known and known.flag and kind == "pairs" else None,
        maps_to_numbers=kind == "pairs" and known is not None and known.maps_to_numbers,
    )


def _kind(name: str, body: Mapping[str, Any]) -> Kind:
    if "enum" in body:
        return "choice"
    if name == "engine.num_actors":  # a number or MIN-MAX
        return "text"
    kinds: dict[str, Kind] = {
        "array": "lines", "object": "pairs", "boolean": "checkbox", "integer": "number", "number": "number",
        "string": "text",
    }  # fmt: skip
    return kinds[body["type"]]
