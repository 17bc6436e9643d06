"""Load a user's quadrant rule from `module:function`."""

from __future__ import annotations

from qtune_service.importing import import_named
from qtune_service.selection.plane import QuadrantRule


def load_rule(path: str | None) -> QuadrantRule | None:
    """Import the function. Raises SpecError."""
    rule: QuadrantRule | None = None if path is None else import_named(path, "quadrant rule")
    return rule
