"""Every number of a spec has both bounds, and every text and collection a largest length; see config.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from qtune_service.config import MAX_PATHS, JobSpec
from qtune_service.errors import SpecError
from qtune_service.spec_files import parse_spec
from qtune_service.wire import MAX_REQUEST_PATHS, JobRequest, PreviewRequest, RepruneRequest
from tests.unit.test_config import MINIMAL

MODELS = (JobSpec, JobRequest, PreviewRequest, RepruneRequest)


def unbounded(schema: dict[str, Any]) -> list[str]:
    """Return the places in a JSON schema that a request could make as large as it likes."""
    definitions = schema.get("$defs", {})

    def walk(node: dict[str, Any], place: str) -> Iterator[str]:
        if "$ref" in node:
            yield from walk(definitions[node["$ref"].rpartition("/")[2]], place)
            return
        for option in node.get("anyOf", ()):
            yield from walk(option, place)
        for name, below in node.get("properties", {}).items():
            yield from walk(below, f"{place}.{name}")
        for below in (*node.get("prefixItems", ()), node.get("items"), node.get("additionalProperties")):
            if isinstance(below, dict):
                yield from walk(below, f"{place}[]")
        if "enum" not in node and "const" not in node and not _is_bounded(node):
            yield f"{place}: {node}"

    return list(walk(schema, "spec"))


def _is_bounded(node: dict[str, Any]) -> bool:
    kind = node.get("type")
    if kind in ("integer", "number"):
        return bool({"minimum", "exclusiveMinimum"} & node.keys() and {"maximum", "exclusiveMaximum"} & node.keys())
    if kind == "object" and "properties" not in node:
        return "maxProperties" in node and "maxLength" in node.get("propertyNames", {})
    needed = {"string": "maxLength", "array": "maxItems"}.get(str(kind))
    known = kind in ("string", "array", "object", "boolean", "null") or "anyOf" in node
    return known and (needed is None or needed in node)


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_bounded(model: type[BaseModel]) -> None:
    """So is a field that is added later."""
    assert unbounded(model.model_json_schema()) == []


def test_the_walk_finds_what_has_no_bound() -> None:
    """At any depth; so the test above can fail."""

    class Inner(BaseModel):
        count: Annotated[int, Field(ge=0)] | None = None
        share: Annotated[float, Field(le=1)] = 0
        text: str = ""
        free: Any = None

    class Outer(BaseModel):
        inner: Inner
        names: tuple[Annotated[str, Field(max_length=3)], ...]
        take: dict[str, Annotated[int, Field(ge=0, le=1)]] = Field(max_length=3)

    found = [line.partition(":")[0] for line in unbounded(Outer.model_json_schema())]
    names = ["inner.count", "inner.share", "inner.text", "inner.free", "names", "take"]
    assert sorted(found) == sorted(f"spec.{name}" for name in names)


def numbers() -> list[tuple[str, str, float, float]]:
    """Return (part, field, lowest, highest) of every number of a spec."""
    found = []
    for part, field in JobSpec.model_fields.items():
        models = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(kind)]
        for model in models:
            for name, node in model.model_json_schema()["properties"].items():
                for option in node.get("anyOf", [node]):
                    if option.get("type") in ("integer", "number"):
                        lowest = option.get("minimum", option.get("exclusiveMinimum"))
                        found.append((part, name, lowest, option["maximum"]))
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@pytest.mark.parametrize(("part", "name", "lowest", "highest"), numbers())
def test_a_number_over_its_bounds_is_refused(part: str, name: str, lowest: float, highest: float) -> None:
    """The largest value is taken; more, less, and numbers that are none name the field."""
    given = {**MINIMAL.get(part, {})}
    parse_spec({**MINIMAL, part: {**given, name: highest}})
    for wrong in (highest + 1, lowest - 1, 1e300, float("inf"), float("nan"), -(10**40)):
        with pytest.raises(SpecError, match=rf"{part}\.{name}"):
            parse_spec({**MINIMAL, part: {**given, name: wrong}})


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("input", "paths", ["a" * 4097]),
        ("input", "chat_template", "a" * ((1 << 20) + 1)),
        ("input", "category_field", "a" * 1001),
        ("input", "take", {str(n): 1 for n in range(10_001)}),
        ("input", "take", {"a": 10**12 + 1}),
        ("model", "name", "a" * 4097),
        ("engine", "num_actors", "1-10001"),
        ("engine", "num_actors", "9" * 5000),
        ("engine", "num_actors", "²"),
        ("engine", "name", f"{'a' * 1000}:b"),
        ("prune", "quadrant_rule", "a" * 1001),
        ("output", "path", "a" * 4097),
    ],
)
def test_a_text_over_its_length_is_refused(part: str, field: str, value: Any) -> None:
    """In one short message that names the field, and does not repeat what was sent."""
    given = {"category_field": "c"} if field == "take" else {}
    with pytest.raises(SpecError) as caught:
        parse_spec({**MINIMAL, part: {**MINIMAL.get(part, {}), **given, field: value}})
    assert f"{part}.{field}" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_as_many_paths_as_a_shell_passes_are_taken() -> None:
    """By a job file and by the command line; one request names fewer, and is told what to do instead."""
    parse_spec({**MINIMAL, "input": {"paths": ["d"] * MAX_PATHS}})
    with pytest.raises(SpecError, match=r"input\.paths: .*at most 100,000 are allowed: name a folder"):
        parse_spec({**MINIMAL, "input": {"paths": ["d"] * (MAX_PATHS + 1)}})
    paths = ["d"] * MAX_REQUEST_PATHS
    request = {"model": {"name": "m"}, "input": {"paths": paths}}
    JobRequest.model_validate(request)
    paths.append("d")
    with pytest.raises(ValidationError, match="10,001 paths, at most 10,000 are allowed") as caught:
        JobRequest.model_validate(request)
    assert [error["loc"] for error in caught.value.errors()] == [("input", "paths")]


def test_many_errors_are_cut() -> None:
    """Twenty are shown, the rest are counted; a long key is shown in part."""
    with pytest.raises(SpecError) as caught:
        parse_spec({**MINIMAL, "input": {"paths": ["d"]} | {f"{n}{'x' * 5000}": 1 for n in range(1000)}})
    text = str(caught.value)
    assert "1000 fields are wrong" in text
    assert "... and 980 more" in text
    assert len(text) < 5000
