"""Load a user's quadrant rule from `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from qtune_service.core.plane import QuadrantRule
from qtune_service.errors import SpecError


def load_rule(path: str | None) -> QuadrantRule | None:
    """Import the function. Modules beside the working directory are found. Raises SpecError."""
    if path is None:
        return None
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        rule: QuadrantRule = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(
            f"cannot load quadrant rule {path!r}: {error}", "Give MODULE:FUNCTION that Python can import."
        ) from error
    if not callable(rule):
        raise SpecError(f"quadrant rule {path!r} is not a function", "Give MODULE:FUNCTION.")
    return rule
