"""Declare commands: help texts that fit 80 columns, import on use, and options that several commands share.

A help text has sections by task, whole names, placeholders of values, and examples.

A command's options are listed by the section in their `rich_help_panel`, in the order of `FlagGroup`; other sections
follow in the order of the options. Names and values stand on the left, texts in a column on the right, below the name
where the name is too long. A command's epilog holds its examples.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

ARGUMENTS, OPTIONS = "Arguments", "Options"
NAME_WIDTH, WIDTH = 28, 80
INDENT = "  "
_BRACKETS = re.compile(r"\[(default|env): [^\]]{,30}\]")
_NO_BREAK = "\0"
CONTEXT = {"help_option_names": ["-h", "--help"]}


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    usage: str = "[OPTIONS]",
    examples: str = "",
    cls: type[HelpCommand] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a command to an app. usage: the end of the usage line, after the arguments. examples: one per line."""
    return app.command(name, cls=cls or HelpCommand, options_metavar=usage, epilog=examples or None)


class HelpCommand(TyperCommand):
    """A command with such a help text."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the arguments, then the options."""
        arguments = (_argument_name(p) if p.required else f"[{_argument_name(p)}]" for p in _arguments(self, ctx))
        return [*arguments, *filter(None, [self.options_metavar])]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, the sections and the examples."""
        self.format_usage(ctx, formatter)
        _write_text(formatter, self.help)
        for title, rows in sections(self.get_params(ctx)).items():
            _write_section(formatter, title, rows)
        if self.epilog:
            formatter.write(f"\n{_heading('Examples')}\n{textwrap.indent(self.epilog, INDENT)}\n")


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is imported when it is used: its module, its line in the list, and its section there."""

    module: str
    summary: str
    section: str
    group: str = ""
    """The name of its app there, if it is a group of commands."""


class Group(TyperGroup):
    """A group of commands with such a help text."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the usage, the description, and a line per command."""
        self.format_usage(ctx, formatter)
        _write_text(formatter, self.help)
        summaries = self.summaries()
        width = 2 + max(len(name) for rows in summaries.values() for name, _ in rows)
        for title, rows in summaries.items():
            _write_section(formatter, title, rows, width)
        _write_section(formatter, OPTIONS, [_row(param) for param in self.get_params(ctx)])

    def summaries(self) -> Mapping[str, list[tuple[str, str]]]:
        """Return names and first sentences of the commands, by section."""
        return {"Commands": [(name, first_sentence(found.help)) for name, found in self.commands.items()]}


class _LazyCommands(MutableMapping[str, Any]):
    """Commands by name. A lazy one is imported when it is read."""

    def __init__(self, lazy: Mapping[str, LazyCommand]) -> None:
        self._lazy = lazy
        self._commands: dict[str, Any] = dict.fromkeys(lazy)

    def __getitem__(self, name: str) -> Any:
        if self._commands[name] is None:
            lazy = self._lazy[name]
            group = typer.main.get_group(getattr(importlib.import_module(lazy.module), lazy.group or "app"))
            self._commands[name] = group if lazy.group else group.commands[name]
        return self._commands[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class LazyGroup(Group):
    """A group whose commands are imported when they are used. A subclass names them in `lazy`."""

    lazy: ClassVar[Mapping[str, LazyCommand]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _LazyCommands(self.lazy)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """Return the names of all commands, without importing one."""
        return list(self.commands)

    def summaries(self) -> Mapping[str, list[tuple[str, str]]]:
        """Return names and summaries of the commands, by section."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name, lazy in self.lazy.items():
            found.setdefault(lazy.section, []).append((name, lazy.summary))
        return found


def replace_parameter(
    run: Callable[..., None], signature: inspect.Signature, name: str, new: Collection[inspect.Parameter]
) -> None:
    """Set the signature of `run` that typer reads: that of a command, with several parameters in place of one."""
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for old in signature.parameters.values()
        for parameter in (new if old.name == name else [old])
    ]
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a help text."""
    return " ".join((text or "").split("\n\n")[0].split()).partition(". ")[0].removesuffix(".") + "."


def sections(params: Iterable[Any]) -> Mapping[str, list[tuple[str, str]]]:
    """Return the arguments and options of a command by section, each as its names with its value, and its text."""
    found: dict[str, list[tuple[str, str]]] = {}
    for param in _ordered(params):
        found.setdefault(_section(param), []).append(_row(param))
    return found


def _arguments(command: Any, ctx: Any) -> Iterator[Any]:
    return (param for param in command.get_params(ctx) if param.param_type_name == "argument")


def _ordered(params: Iterable[Any]) -> list[Any]:
    """Return options by section: arguments, those of FlagGroup, others, rare ones. Arguments begin a section."""
    from qtune_service.config import FlagGroup

    params = list(params)
    found = dict.fromkeys(map(_section, params))
    groups = [group for group in FlagGroup if group in found]
    rare = [group for group in groups if group is FlagGroup.rare]
    others = [section for section in found if section not in (*groups, ARGUMENTS, OPTIONS)]
    has_options = sum(_section(param) == OPTIONS for param in params) > 1  # more than --help
    first = [ARGUMENTS, *(group for group in groups if group not in rare), *([OPTIONS] if has_options else [])]
    order = [*first, *others, *rare, OPTIONS]
    return sorted(params, key=lambda param: (order.index(_section(param)), param.param_type_name != "argument"))


def _section(param: Any) -> str:
    default = ARGUMENTS if param.param_type_name == "argument" else OPTIONS
    return str(getattr(param, "rich_help_panel", None) or default)


def _row(param: Any) -> tuple[str, str]:
    """Return an option's names with the placeholder of its value, and its text."""
    is_argument = param.param_type_name == "argument"
    names = [_argument_name(param)] if is_argument else sorted(param.opts, key=lambda name: name.startswith("--"))
    left = ", ".join(names) + "".join(f" / {name}" for name in param.secondary_opts)
    if not is_argument and not param.is_flag:
        left += f" {param.metavar or param.name.rpartition('_')[2].upper()}"
    return left, " ".join(filter(None, [param.help, *_extras(param)]))


def _argument_name(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.nargs == 1 or name.endswith("...") else f"{name}..."


def _extras(param: Any) -> Iterator[str]:
    """Yield the remarks in brackets: environment variable, required, default."""
    default = getattr(param.default, "value", param.default) if isinstance(param.default, Enum) else param.default
    if param.envvar:
        yield f"[env: {param.envvar}]"
    if param.required and param.param_type_name == "option":
        yield "[required]"
    is_shown = default not in (None, False, (), "", ...) and not callable(default) and not param.required
    if is_shown and getattr(param, "show_default", False) and not getattr(param, "is_flag", False):
        yield f"[default: {default}]"


def _heading(title: str) -> str:
    return str(typer.style(f"{title}:", bold=True))


def _write_text(formatter: Any, text: str | None) -> None:
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        formatter.write(f"\n{textwrap.fill(' '.join(paragraph.split()), _width(formatter))}\n")


def _write_section(formatter: Any, title: str, rows: list[tuple[str, str]], name_width: int = NAME_WIDTH) -> None:
    formatter.write(f"\n{_heading(title)}\n")
    column = " " * (len(INDENT) + name_width)
    for name, text in rows:
        whole = _BRACKETS.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)
        wrapped = textwrap.wrap(whole, _width(formatter) - len(column), break_long_words=False, break_on_hyphens=False)
        lines = [line.replace(_NO_BREAK, " ") for line in wrapped] or [""]
        beside = lines.pop(0) if len(name) <= name_width - 2 else ""
        formatter.write(f"{INDENT}{name:{name_width}}{beside}".rstrip() + "\n")
        for line in lines:
            formatter.write(f"{column}{line}\n")


def _width(formatter: Any) -> int:
    return int(min(formatter.width + 2, WIDTH))
