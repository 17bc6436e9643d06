"""Import what a user names as `module:name`: a quadrant rule, an engine.

transformers without torch: a third of the start-up where only a tokenizer and a configuration are wanted.

transformers supports that; it looks for torch once, when it is first imported. So this must come before, and only in
a process that runs no model later: the command's own, and the workers that encode.
"""

from __future__ import annotations

import importlib
import os
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


def import_transformers_without_torch() -> None:
    """Import transformers as if torch were not installed; does nothing where either of them is imported already."""
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    advice = os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would tell the user that torch was not found
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, which is what transformers tries
    try:
        import transformers
        from transformers.utils import is_torch_available

        assert transformers.__version__
        is_torch_available()  # remembered
    finally:
        del sys.modules["torch"]
        if advice is None:
            del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
        else:
            os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = advice
