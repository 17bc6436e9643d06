"""The fields of a job as the command line, the form, the reference and `job_command` need them.

`job_fields` walks JobSpec once and returns a `JobField` for each field that a user sets, with its dotted name. Names of
flags, groups and help come from config.py. Texts there name other fields in backticks; `in_terminal` and `on_page`
replace these names by flags and by labels.

`job_command` builds the command of a job: `qtune prune` or `score` with the flags of all fields that are not defaults.
A job that sets a field without a flag, or a value that no flag can carry, becomes a job file and `qtune run`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from qtune_service.config import JOB_FILE_ONLY, Flag, JobSpec
from qtune_service.spec_files import error_text

_NAMED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class JobField:
    """A field of a job: `input.format`, or `from_scores` without a part."""

    path: str
    info: FieldInfo
    flag: Flag | None
    """None for a field of job files only."""

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def option(self) -> str | None:
        """Return the flag, such as `--format`; None for a field of job files only."""
        return None if self.flag is None else f"--{self.flag.name or self.name.replace('_', '-')}"

    @property
    def is_argument(self) -> bool:
        """Return whether the command line takes the values without a flag."""
        return self.path == "input.paths"

    @property
    def negative(self) -> str | None:
        """Return the flag that turns a switch off, if it is on by default."""
        return f"--no-{self.option[2:]}" if self.default is True and self.option else None

    @property
    def help(self) -> str:
        """Return the text under the field."""
        return " ".join((self.info.description or "").split())

    @property
    def label(self) -> str:
        """Return the name in the form."""
        return (self.flag and self.flag.label) or self.name.replace("_", " ").capitalize()

    @property
    def is_required(self) -> bool:
        """Return whether the field has no default."""
        return self.info.is_required()

    @property
    def default(self) -> Any:
        """Return the default; None where there is none."""
        return None if self.is_required else self.info.get_default(call_default_factory=True)

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the allowed values of a field with a fixed list of them."""
        return next((get_args(kind) for kind in self._kinds() if get_origin(kind) is Literal), ())

    @property
    def is_switch(self) -> bool:
        """Return whether the field is true or false."""
        return bool in self._kinds()

    @property
    def is_mapping(self) -> bool:
        """Return whether the field holds names with values, such as `take`."""
        return any(get_origin(kind) is dict for kind in self._kinds())

    @property
    def maps_to_numbers(self) -> bool:
        """Return whether the values of a mapping are numbers."""
        kinds = [get_args(kind)[1] for kind in self._kinds() if get_origin(kind) is dict]
        return any((get_args(kind)[0] if get_origin(kind) is Annotated else kind) is int for kind in kinds)

    def _kinds(self) -> tuple[Any, ...]:
        """Return the types of the field without Annotated, None and Optional."""
        kind = self.info.annotation
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        return tuple(get_args(each)[0] if get_origin(each) is Annotated else each for each in kinds)

    def parse(self, text: str) -> Any:
        """Parse a text into the field's value. Raises ValueError that names the allowed values."""
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(map(repr, self.choices))}.")
        try:
            return _adapter(self.path).validate_python(text)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            if wrong["type"] == "string_pattern_mismatch" and self.flag:
                raise ValueError(f"expected {self.flag.metavar}, got {text!r}") from None
            raise ValueError(error_text(wrong["msg"])) from None


@cache
def job_fields() -> Mapping[str, JobField]:
    """Return all fields of a job by their dotted names, in the order of JobSpec."""
    return {field.path: field for field in _walk(JobSpec, "")}


def _walk(model: type[BaseModel], prefix: str) -> Iterator[JobField]:
    for name, info in model.model_fields.items():
        part = next((kind for kind in (info.annotation, *get_args(info.annotation)) if _is_part(kind)), None)
        if part is not None:
            yield from _walk(part, f"{prefix}{name}.")
            continue
        flag = next((each for each in info.metadata if isinstance(each, Flag)), None)
        if (flag is None) != (JOB_FILE_ONLY in info.metadata):
            raise TypeError(f"{prefix}{name} needs either a Flag or JOB_FILE_ONLY, see config.py")
        yield JobField(prefix + name, info, flag)


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


@cache
def _adapter(path: str) -> TypeAdapter[Any]:
    info = job_fields()[path].info
    kind: Any = Annotated[info.annotation, *info.metadata]  # each field has a Flag at least
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def in_terminal(text: str, other: str = "{}") -> str:
    """Return a text with flags in place of the fields that it names. other: form of other words in backticks."""
    return _named(text, lambda field: field.option, other)


def on_page(text: str) -> str:
    """Return a text with labels of the form in place of the fields that it names."""
    return _named(text, lambda field: f"“{field.label}”", "`{}`")


def _named(text: str, name_of: Callable[[JobField], str | None], other: str) -> str:
    by_name = {field.name: field for field in job_fields().values() if field.name not in ("name", "path")}
    by_name |= job_fields()

    def named(match: re.Match[str]) -> str:
        field = by_name.get(match[1])
        return (field and name_of(field)) or other.format(match[1])

    return _NAMED.sub(named, text)


END = "END_OF_JOB"


def job_command(spec: JobSpec) -> str:
    """Return one command, or the lines that write a job file and run it."""
    changed = list(_changed(spec))
    if spec.from_scores is not None:  # input, model and engine are those of the scores
        changed = [(field, value) for field, value in changed if field.path.startswith("prune.")]
        words = ["--from-scores", spec.from_scores, "--output", spec.output.path]
        return shlex.join(["qtune", "prune", *words, *_flags(changed)])
    if not all(_has_flag(field, value) for field, value in changed):
        return f"cat > job.json <<'{END}'\n{_job_file(spec)}\n{END}\nqtune run job.json"
    flags = _flags((field, value) for field, value in changed if not field.is_argument)
    return shlex.join(["qtune", "score" if spec.prune is None else "prune", *flags, "--", *spec.input.paths])


def _changed(spec: JobSpec) -> Iterator[tuple[JobField, Any]]:
    """Yield each field that is not the default, with its value."""
    for field in job_fields().values():
        part, _, name = field.path.rpartition(".")
        owner = getattr(spec, part) if part else spec
        if owner is not None and (value := getattr(owner, name)) != field.default:
            yield field, value


def _has_flag(field: JobField, value: Any) -> bool:
    """Return whether a flag can carry a value: a category without a name is none for `--take`."""
    return field.flag is not None and not (field.is_mapping and "" in value)


def _flags(changed: Iterator[tuple[JobField, Any]] | list[tuple[JobField, Any]]) -> list[str]:
    return [word for field, value in changed for word in _flag(field, value)]


def _flag(field: JobField, value: Any) -> list[str]:
    assert field.option is not None
    if field.is_switch:
        return [field.option if value else field.negative or ""]
    if field.is_mapping:
        texts = [f"{name}={number}" for name, number in value.items()]
    elif isinstance(value, tuple):
        texts = ["-".join(map(str, sorted(set(value))))]
    else:
        texts = [str(value)]
    return [
        word for text in texts for word in ([f"{field.option}={text}"] if text[:1] == "-" else [field.option, text])
    ]


def _job_file(spec: JobSpec) -> str:
    """Return the spec as JSON on one line, so that none of its lines ends the text."""
    body: Mapping[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(body)
