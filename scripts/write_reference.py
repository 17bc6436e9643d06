"""Write docs/reference.md: every field of a job file with its default and meaning, from the code itself."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel

from qtune_service import config

PARTS = ("input", "model", "engine", "prune", "output", "limits")
HEAD = """# Reference of job files

Written by `make docs` from `qtune_service/config.py`. A job file is TOML or JSON; each flag of `qtune prune` sets the
field of its name.

```toml
[input]
paths = ["data/*.jsonl"]
[model]
name = "./my-model"
[prune]
sample_keep_ratio = 0.25
[output]
path = "out"
```
"""


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each field."""
    body = ast.parse(inspect.getsource(model)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in pairwise(body):
        is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if is_field and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def section(name: str, model: type[BaseModel]) -> str:
    """One table."""
    texts = docstrings(model)
    lines = [f"\n## {name}\n{(model.__doc__ or '').strip()}\n", "| field | default | meaning |", "|---|---|---|"]
    for field, info in model.model_fields.items():
        default = "required" if info.is_required() else f"`{info.get_default(call_default_factory=True)!r}`"
        lines.append(f"| `{field}` | {default} | {texts.get(field, '')} |")
    return "\n".join(lines) + "\n"


def render() -> str:
    """The whole page."""
    models = {"input": config.InputSpec, "model": config.ModelSpec, "engine": config.EngineSpec}
    models |= {"prune": config.PruneSpec, "output": config.OutputSpec, "limits": config.LimitsSpec}
    top = "\n## Top level\n| field | default | meaning |\n|---|---|---|\n"
    top += f"| `from_scores` | `None` | {docstrings(config.JobSpec)['from_scores']} |\n"
    return HEAD + "".join(section(name, models[name]) for name in PARTS) + top


if __name__ == "__main__":
    (Path(__file__).resolve().parent.parent / "docs" / "reference.md").write_text(render(), encoding="utf-8")
