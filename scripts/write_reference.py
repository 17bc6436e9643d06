"""Write the generated pages of docs/: the fields of a job file, the flags, and the settings, from the code itself."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from qtune_service import cli, config
from qtune_service.cli.commands import sections
from qtune_service.job_fields import JobField, job_fields
from qtune_service.server.settings import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"

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


TABLE = ("| field | default | allowed | meaning |", "|---|---|---|---|")


def section(part: str, model: type[BaseModel]) -> str:
    """Return the table of one part of a job file."""
    properties = model.model_json_schema()["properties"]
    fields = [field for field in job_fields().values() if field.path.rpartition(".")[0] == part]
    title = f"{part}\n{(model.__doc__ or '').strip()}" if part else "Top level"
    rows = [field_row(field, properties[field.name]) for field in fields]
    return "\n".join([f"\n## {title}\n", *TABLE, *rows]) + "\n"


def field_row(field: JobField, schema: dict[str, Any]) -> str:
    """Return the row of one field."""
    default = "required" if field.is_required else f"`{field.default!r}`"
    flag = "" if field.flag else " Has no flag."
    return f"| `{field.name}` | {default} | {allowed(schema)} | {field.help}{flag} |"


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
    parts = dict.fromkeys(path.rpartition(".")[0] for path in job_fields())
    return HEAD + "".join(section(part, models.get(part, config.JobSpec)) for part in parts)


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


def command_section(name: str, command: Any) -> str:
    """Return the section of a command: its help text, a table of its flags, and its examples."""
    text = "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(command.help).split("\n\n"))
    lines = [f"\n## qtune {name}\n{text}"]
    lines += ["\n| flag | meaning |", "|---|---|"] * bool(command.params)
    for title, rows in sections(command.params).items():
        lines += [f"| **{title}** | |"] * (title not in PLAIN_TITLES)
        lines += [f"| `{flag}` | {text} |" for flag, text in map(escaped, rows)]
    if command.epilog:
        lines += ["\n```bash", command.epilog, "```"]
    return "\n".join(lines) + "\n"


PLAIN_TITLES = ("Arguments", "Options")


def escaped(row: tuple[str, str]) -> tuple[str, str]:
    """Return a row whose bars do not end a cell of a table."""
    return row[0].replace("|", "\\|"), row[1].replace("|", "\\|").replace("<", "&lt;")


def render_commands() -> str:
    """Return the page of commands."""
    found: dict[str, Any] = {}
    root: Any = typer.main.get_command(cli.app)
    for name, command in root.commands.items():
        below = getattr(command, "commands", None)
        found |= {name: command} if below is None else {f"{name} {each}": inner for each, inner in below.items()}
    return COMMANDS_HEAD + "".join(command_section(name, command) for name, command in found.items())


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
