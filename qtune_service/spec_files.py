"""Read a JobSpec from a file, from plain data, or from one line of text, and describe what is wrong in it.

`pack_spec` makes the line of text, which carries a spec to a driver that shares no disk with the server.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qtune_service.config import JobSpec
from qtune_service.errors import SpecError

SHOWN_ERRORS, SHOWN_KEY_CHARS = 20, 80
Model = TypeVar("Model", bound=BaseModel)


def load_spec(path: Path) -> JobSpec:
    """Read a JobSpec from a `.toml` or `.json` file. Raises SpecError naming the file and the field."""
    return parse_spec(read_job_file(path), where=str(path))


def read_job_file(path: Path) -> Any:
    """Return the plain data of a `.toml` or `.json` file. Raises SpecError."""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SpecError(
            f"cannot read {path}: {error.strerror}", "Give the path of a .toml or .json job file."
        ) from error
    except ValueError as error:
        raise SpecError(f"{path} is not valid {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from error


def parse_spec(data: Any, where: str = "job spec") -> JobSpec:
    """Validate plain data. Raises SpecError that names each wrong field."""
    return validated(JobSpec, data, where)


def validated(kind: type[Model], data: Any, where: str) -> Model:
    """Return plain data as a model. Raises SpecError that names each wrong field."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SpecError(describe_errors(error, where)) from error


def as_it_ran(body: Any) -> Any:
    """Return the spec in a manifest, as plain data, with the values that settings had before they existed."""
    prune = body.get("prune") if isinstance(body, Mapping) else None
    if not isinstance(prune, Mapping) or "keep_end_of_turn" in prune:
        return body
    return {**body, "prune": {**prune, "keep_end_of_turn": False}}


def pruned_again(earlier: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prune settings of a new pruning: those that are given, and those of the earlier spec (`as_it_ran`)."""
    kept = dict(earlier.get("prune") or {})
    if given.get("strategy", "q_tuning") != "q_tuning":
        kept.pop("quadrant_rule", None)  # it labels the method's quadrants, and no flag can unset it
    return {**kept, **given}


def describe_errors(error: ValidationError, where: str) -> str:
    """Return the text of an error: how many fields are wrong, and the first of them."""
    found = error.errors(include_url=False, include_input=False)
    lines = [f"  {_field_name(e['loc'])}: {error_text(e['msg'])}" for e in found[:SHOWN_ERRORS]]
    more = [f"  ... and {len(found) - SHOWN_ERRORS} more"] if len(found) > SHOWN_ERRORS else []
    number = "1 field is wrong" if len(found) == 1 else f"{len(found)} fields are wrong"
    return "\n".join([f"{where}: {number}", *lines, *more])


def error_text(message: str) -> str:
    """Return a message of pydantic without the name of the exception that it begins with."""
    return message.removeprefix("Value error, ")


def _field_name(location: tuple[int | str, ...]) -> str:
    """Return an error's location as `input.paths.0`. Long keys, which a user may have written, are cut."""
    return ".".join(str(part)[:SHOWN_KEY_CHARS] for part in location) or "spec"


MAX_CHARS = 100_000
"""Most characters of a packed spec: the system allows 128 KiB in one variable or argument."""


def pack_spec(spec: Mapping[str, Any]) -> str:
    """Return a spec as one line of text for an environment variable: gzipped JSON in base64.

    Shells and Ray, which replaces `${NAME}` by values of its own environment, find nothing in it to change. Raises
    SpecError if the text is too long.
    """
    packed = base64.b64encode(gzip.compress(json.dumps(dict(spec)).encode(), mtime=0)).decode()
    if len(packed) > MAX_CHARS:
        raise SpecError(
            f"the job's spec is too long for the cluster: {len(packed):,} characters, at most {MAX_CHARS:,}",
            "Name a folder or a pattern in input.paths instead of each file.",
        )
    return packed


def unpack_spec(text: str, where: str) -> JobSpec:
    """Return the spec of a packed text or of JSON. Raises SpecError that names `where`."""
    try:
        plain = text if text.lstrip().startswith("{") else gzip.decompress(base64.b64decode(text, validate=True))
        return parse_spec(json.loads(plain), where=where)
    except (binascii.Error, OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{where} holds no job spec: {error}", "Give JSON, or that gzipped in base64.") from error
