"""Import what a user names as `module:name`: a quadrant rule, an engine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from qtune_service.errors import SpecError


def import_named(path: str, what: str) -> Any:
    """The callable at `module:name`. Modules beside the working directory are found. Raises SpecError."""
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"cannot load {what} {path!r}: {error}", "Give MODULE:NAME that Python can import.") from error
    if not callable(found):
        raise SpecError(f"{what} {path!r} cannot be called", "Give MODULE:NAME of a function or a class.")
    return found
