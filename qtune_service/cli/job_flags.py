"""Flags made from the fields of JobSpec: names, sections, help, limits and defaults come from config.py.

`takes_job_fields` gives a command the flags of some fields in place of its parameter `given`, a mapping from the
dotted names of the fields that the user set to their values. A value is checked by its field's own type when it is
parsed. `spec_of` makes a JobSpec of the mapping and checks rules between fields.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from qtune_service.cli.commands import replace_parameter
from qtune_service.config import JobSpec
from qtune_service.errors import SpecError
from qtune_service.job_fields import JobField, in_terminal, job_fields
from qtune_service.spec_files import SHOWN_ERRORS, error_text

Given = Mapping[str, Any]
"""Values by dotted names of fields."""


def takes_job_fields(
    paths: Collection[str],
    *,
    required: Collection[str] = (),
    helps: Mapping[str, str] | None = None,
    has_defaults: bool = True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these fields in place of its parameter `given`.

    helps: texts in place of those of the fields, where a command uses a field in another way. has_defaults: False for a
    command that leaves fields as they are unless they are given.
    """
    fields = {_parameter_name(job_fields()[path]): job_fields()[path] for path in paths}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            _parameter(name, field, _text(field, (helps or {}).get(path, field.help), has_defaults), path in required)
            for path, (name, field) in zip(paths, fields.items(), strict=True)
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            flags = {field.path: values.pop(name) for name, field in fields.items()}
            command(given={path: value for path, value in flags.items() if value not in (None, [], ())}, **values)

        replace_parameter(run, inspect.signature(command, eval_str=True), "given", parameters)
        return run

    return decorate


def with_flag(*, but: Collection[str] = ()) -> list[str]:
    """Return the names of all fields that have a flag, in the order of JobSpec."""
    return [path for path, field in job_fields().items() if field.flag is not None and path not in but]


def _parameter_name(field: JobField) -> str:
    assert field.option is not None, f"{field.path} is a field of job files only"
    return field.option[2:].replace("-", "_")


def _text(field: JobField, text: str, has_default: bool) -> str:
    """Return the help of a flag: that of its field, choices that neither it nor the metavar names, and the default."""
    assert field.flag is not None
    text = in_terminal(text)
    if field.flag.metavar and not all(choice in text for choice in field.choices):
        text += f" One of {', '.join(field.choices)}."
    if field.is_mapping:
        text += " Repeatable."
    if has_default and (field.default is True or type(field.default) in (int, float, str)):
        text += f" [default: {'on' if field.default is True else field.default}]"
    return text


def _parameter(name: str, field: JobField, text: str, is_required: bool) -> inspect.Parameter:
    assert field.flag is not None
    assert field.option is not None
    common: dict[str, Any] = {"rich_help_panel": field.flag.group.value, "show_default": False}
    metavar = field.flag.metavar or "|".join(field.choices) or None
    kind: Any = list[str] if field.is_mapping or field.is_argument else bool if field.is_switch else Any
    if field.is_argument:
        info = typer.Argument(metavar=f"{metavar}...", help=text, **common)
    else:
        names = [f"{field.option}/{field.negative}" if field.negative else field.option, field.flag.short]
        parser = None if kind in (bool, list[str]) else _parser(field)
        info = typer.Option(*filter(None, names), metavar=metavar, help=text, parser=parser, **common)
    default = inspect.Parameter.empty if is_required else None
    annotation: Any = Annotated[kind if is_required else kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parser(field: JobField) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return field.parse(text)
        except ValueError as error:
            raise typer.BadParameter(in_terminal(str(error))) from None

    return parse


def spec_of(given: Given, **parts: Any) -> JobSpec:
    """Return the JobSpec of a command's flags. parts: whole parts in place of those of flags, as `prune=None`.

    Raises SpecError that names flags.
    """
    try:
        return JobSpec.model_validate({**body_of(given), **parts})
    except ValidationError as error:
        raise SpecError(_describe(error)) from error


def body_of(given: Given) -> dict[str, Any]:
    """Return the plain data of a spec with the fields that were given. Raises SpecError."""
    body: dict[str, Any] = {}
    for path, value in given.items():
        *parts, last = path.split(".")
        place = body
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = _mapping(job_fields()[path], value) if job_fields()[path].is_mapping else value
    return body


def _mapping(field: JobField, entries: list[str]) -> dict[str, Any]:
    """Return the values of a repeated `NAME=VALUE`. In `CATEGORY=N`, the name may contain `=`."""
    assert field.flag is not None
    found = [entry.rpartition("=") if field.maps_to_numbers else entry.partition("=") for entry in entries]
    if any(not name or not value or (field.maps_to_numbers and not value.isdecimal()) for name, _, value in found):
        example = "math=100" if field.maps_to_numbers else "bot=assistant"
        raise SpecError(
            f"{field.option} needs {field.flag.metavar}, got {' '.join(entries)!r}",
            f"For example {field.option} {example}.",
        )
    return {name: int(value) if field.maps_to_numbers else value for name, _, value in found}


def _describe(error: ValidationError) -> str:
    """Return each error on a line, with its flag."""
    found = error.errors(include_url=False, include_input=False)
    lines = []
    for each in found[:SHOWN_ERRORS]:
        text = in_terminal(error_text(each["msg"]))
        field = job_fields().get(".".join(map(str, each["loc"][:2])))
        lines.append(f"{'DATA' if field.is_argument else field.option}: {text}" if field else text)
    more = [f"... and {len(found) - SHOWN_ERRORS} more"] if len(found) > SHOWN_ERRORS else []
    return "\n".join([*lines, *more])
