"""Write the generated pages of docs/: the fields of a job file, the flags, and the settings, from the code itself."""

from __future__ import annotations

import ast
import inspect
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from qtune_service import cli, config
from qtune_service.server.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"

PARTS = ("input", "model", "engine", "prune", "output", "limits")
HEAD = """# Job files

Written by `make docs` from `qtune_service/config.py`. A job file is TOML or JSON, and `qtune run
job.toml` runs it. Each flag of `qtune prune` sets the field of the same name. A server accepts at
most 10,000 input paths in one request.

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
    """Return the text under each field."""
    body = ast.parse(inspect.getsource(model)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in pairwise(body):
        is_field = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if is_field and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def section(name: str, model: type[BaseModel]) -> str:
    """Return the table of one part of a job file."""
    texts = docstrings(model)
    lines = [f"\n## {name}\n{(model.__doc__ or '').strip()}\n", *TABLE]
    schema = model.model_json_schema()["properties"]
    for field, info in model.model_fields.items():
        default = "required" if info.is_required() else f"`{info.get_default(call_default_factory=True)!r}`"
        lines.append(f"| `{field}` | {default} | {allowed(schema[field])} | {texts.get(field, '')} |")
    return "\n".join(lines) + "\n"


TABLE = ("| field | default | allowed | meaning |", "|---|---|---|---|")


def allowed(schema: dict[str, Any]) -> str:
    """Return what a field's JSON schema allows, in words."""
    options = [_allowed(option) for option in schema.get("anyOf", [schema]) if option["type"] != "null"]
    return " or ".join(option for option in options if option)


def _allowed(option: dict[str, Any]) -> str:
    kind = option["type"]
    if "examples" in option:
        return f"`{option['examples'][0]}`"
    if "enum" in option:
        return "one of " + ", ".join(f"`{value}`" for value in option["enum"])
    if kind in ("integer", "number"):
        low, high = option.get("minimum", option.get("exclusiveMinimum")), option["maximum"]
        return f"{'over ' if 'exclusiveMinimum' in option else ''}{number(low)} to {number(high)}"
    if "prefixItems" in option:
        return "`[MIN, MAX]`"
    units = {
        "string": ("maxLength", "characters"),
        "array": ("maxItems", "items"),
        "object": ("maxProperties", "entries"),
    }
    return f"up to {number(option[units[kind][0]])} {units[kind][1]}" if kind in units else "`true`, `false`"


def number(value: float) -> str:
    """Return a number with thousands separators, and large powers of two as powers."""
    exponent = int(value).bit_length() - 1
    if value >= 1 << 20 and value == 1 << exponent:
        return f"2^{exponent}"
    return "2^63 - 1" if value == (1 << 63) - 1 else f"{value:,}"


def render() -> str:
    """Return the page of job files."""
    models = {"input": config.InputSpec, "model": config.ModelSpec, "engine": config.EngineSpec}
    models |= {"prune": config.PruneSpec, "output": config.OutputSpec, "limits": config.LimitsSpec}
    spec = config.JobSpec.model_json_schema()["properties"]["from_scores"]
    top = "\n".join(["\n## Top level", *TABLE, ""])
    top += f"| `from_scores` | `None` | {allowed(spec)} | {docstrings(config.JobSpec)['from_scores']} |\n"
    return HEAD + "".join(section(name, models[name]) for name in PARTS) + top


COMMANDS_HEAD = """# Commands

Written by `make docs` from `qtune_service/cli/`. `qtune COMMAND --help` shows the same.

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | the watched job failed |
| 2 | wrong flags, spec or output |
| 3 | wrong data |
| 4 | error at run time |
| 5 | the watched job was cancelled |
| 130 | stopped by Ctrl-C |
| 143 | stopped by SIGTERM |

`QTUNE_LOG=FILE` keeps the messages of libraries.
"""


def values(annotation: Any) -> str:
    """Return the choices or the type of a flag."""
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    if get_origin(annotation) is Literal or all(isinstance(kind, str) for kind in kinds):
        return " \\| ".join(kinds)
    (kind,) = kinds if get_origin(annotation) is not list else get_args(annotation)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " \\| ".join(member.value for member in kind)
    if kind is bool:
        return ""
    return f"{values(get_args(kind)[0])}, several" if get_origin(kind) is list else str(kind.__name__).lower()


def row(name: str, parameter: inspect.Parameter) -> str:
    """Return one row of a table of flags."""
    annotation, info = get_args(parameter.annotation)
    is_flag = isinstance(info, typer.models.OptionInfo)
    first = [info.default] if isinstance(info.default, str) else []  # where Annotated puts the first name
    declared = [*first, *(info.param_decls or ())] or [f"--{name.replace('_', '-')}"]
    names = declared if is_flag else [name.upper()]
    is_required = parameter.default is inspect.Parameter.empty
    is_shown = not any(parameter.default is nothing for nothing in (None, False, inspect.Parameter.empty))
    default = f"`{getattr(parameter.default, 'value', parameter.default)}`" if is_shown else ""
    kind = info.metavar.replace("|", "\\|") if info.metavar else values(annotation)
    cells = (", ".join(f"`{n}`" for n in names), kind, "required" if is_required else default, info.help or "")
    return f"| {' | '.join(cells)} |"


def command_section(name: str, callback: Any) -> str:
    """Return the section of a command with its flags."""
    head = [
        f"\n## qtune {name}\n{inspect.getdoc(callback)}\n",
        "| flag | values | default | meaning |",
        "|---|---|---|---|",
    ]
    parameters = inspect.signature(callback, eval_str=True).parameters
    return "\n".join([*head, *(row(*item) for item in parameters.items())]) + "\n"


def named_commands(app: typer.Typer) -> dict[str, Any]:
    """Return the commands of an app by name."""
    return {c.name or str(getattr(c.callback, "__name__", "")): c.callback for c in app.registered_commands}


def render_commands() -> str:
    """Return the page of commands."""
    commands = named_commands(cli.app)
    for group in cli.app.registered_groups:
        assert group.typer_instance is not None
        commands |= {f"{group.name} {name}": of for name, of in named_commands(group.typer_instance).items()}
    return COMMANDS_HEAD + "".join(command_section(name, callback) for name, callback in commands.items())


SETTINGS_HEAD = """# Settings of the server

Written by `make docs` from `qtune_service/server/settings.py`. Settings are environment variables.
A list is separated by `:`. A setting can also be a file in `/run/secrets` with the setting's name in
lower case (`qtune_database_url`), as containers get secrets. The variable has priority over the file.

"""


def render_settings() -> str:
    """Return the page of settings."""
    texts = docstrings(Settings)
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, info in Settings.model_fields.items():
        default = "~/.local/share/qtune" if name == "data_root" else info.get_default(call_default_factory=True)
        shown = "" if default in ("", ()) else f"`{default}`"
        rows.append(f"| `QTUNE_{name.upper()}` | {shown} | {texts.get(name, '')} |")
    return SETTINGS_HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (DOCS / "reference" / "job-file.md").write_text(render(), encoding="utf-8")
    (DOCS / "reference" / "commands.md").write_text(render_commands(), encoding="utf-8")
    (DOCS / "reference" / "settings.md").write_text(render_settings(), encoding="utf-8")
