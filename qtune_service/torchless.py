"""transformers without torch: a third of the start-up where only a tokenizer and a configuration are wanted.

transformers supports that; it looks for torch once, when it is first imported. So this must come before, and only in
a process that runs no model later: the command's own, and the workers that encode.
"""

from __future__ import annotations

import os
import sys


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
