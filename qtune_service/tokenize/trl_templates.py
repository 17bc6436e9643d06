"""Read the chat templates that the installed TRL ships, without importing it.

TRL ships the templates of vendors, and for many families a variant `NAME_training.jinja` with `{% generation %}`
markers. It is not a dependency: the files are found by the import system, because importing TRL would import torch.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

TRAINING = "_training"
_WORDS = re.compile(r"\w+|<[^<>\s]*>")
MIN_SIMILARITY = 0.8
"""Share of common words from which a template counts as similar to a known one."""


@lru_cache(maxsize=1)
def trl_templates() -> Mapping[str, Path]:
    """Return the files of the installed TRL's templates by name; empty without TRL."""
    try:
        spec = importlib.util.find_spec("trl")
    except (ImportError, ValueError):
        spec = None
    folders = [Path(folder) / "chat_templates" for folder in (spec.submodule_search_locations or ())] if spec else []
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.jinja"))}


def families() -> list[str]:
    """Return the names of the templates without those of training variants."""
    return [name for name in trl_templates() if not name.endswith(TRAINING)]


def file_of(name: str) -> Path | None:
    """Return the file of a template, preferring its training variant; None for an unknown name."""
    known = trl_templates()
    return known.get(name + TRAINING) or known.get(name)


@lru_cache(maxsize=64)
def training_template_for(source: str) -> tuple[str, bool] | None:
    """Return a family for which TRL ships a training variant, and whether its template is this one or a similar one."""
    ours = _words(source)
    best: tuple[float, str] = (0.0, "")
    for name in families():
        if name + TRAINING not in trl_templates():
            continue
        try:
            other = _words(trl_templates()[name].read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if ours == other:
            return name, True
        common = len(ours & other) / max(len(ours | other), 1)
        best = max(best, (common, name))
    return (best[1], False) if best[0] >= MIN_SIMILARITY else None


def _words(source: str) -> frozenset[str]:
    """Return the words of a template and pairs of neighbours, which hold its structure."""
    words = _WORDS.findall(source)
    return frozenset(words) | {" ".join(pair) for pair in pairwise(words)}
