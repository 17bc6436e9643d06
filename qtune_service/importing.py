"""Import user code by name, and transformers without torch.

A user names a quadrant rule or an engine as `module:name`. transformers without torch takes a third of the start-up
time, where only a tokenizer and a configuration are needed. It looks for torch once, when it is first imported. So the
import without torch must come first, in a process that never runs a model: the command, or a worker that encodes.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from qtune_service.errors import SpecError


def import_named(path: str, what: str) -> Any:
    """Return the callable at `module:name`, also of modules in the working directory. Raise SpecError."""
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
    """Import transformers as if torch were not installed. Do nothing where either is imported already."""
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    advice = os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would warn that torch was not found
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers tries to import it, and fails
    try:
        import transformers
        from transformers.utils import is_torch_available

        assert transformers.__version__
        is_torch_available()  # caches the answer
    finally:
        del sys.modules["torch"]
        if advice is None:
            del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
        else:
            os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = advice
