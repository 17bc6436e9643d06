"""Help texts in a terminal of 80 columns: whole names, words for values, sections in order, examples; and start-up."""

from __future__ import annotations

import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fcntl import ioctl
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.cli.commands import first_sentence
from qtune_service.cli.main import Commands
from qtune_service.config import FlagGroup
from tests.jobs import QTUNE, environment

WITH_EXAMPLES = (
    *("prune", "score", "run", "preview", "estimate", "inspect", "compare", "export", "serve"),
    *("jobs submit", "jobs reprune", "jobs download", "datasets upload"),
)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command and group by what is typed after `qtune`."""
    root: Any = typer.main.get_command(app)
    yield "", root
    for name, command in root.commands.items():
        yield name, command
        for below, inner in getattr(command, "commands", {}).items():
            yield f"{name} {below}", inner


def help_of(name: str) -> str:
    """Return the help of a command, in 80 columns."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


def sections(text: str) -> dict[str, list[str]]:
    """Return the names that each section lists, in order."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][^.]*:", line):
            title = line[:-1]
        elif title and (match := re.match(r"  (\S.*?)(?:  |$)", line)):
            found.setdefault(title, []).append(match[1])
    return found


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_fits_80_columns(name: str) -> None:
    """No line is longer, no name is cut, and a value is a word and not a type of Python."""
    text = help_of(name)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "…" not in text
    assert re.findall(r"<(?:bool|int|str|float|list|path)[^>]*>", text, re.IGNORECASE) == []
    command = dict(commands())[name]
    for param in command.params:
        for option in (*param.opts, *param.secondary_opts):
            shown = option in text if option.startswith("-") else f"{param.metavar or option.upper()}" in text
            assert shown, f"{option} is not whole"
        assert param.help, f"{param.name} has no help"


@pytest.mark.parametrize("name", ["prune", "score"])
def test_data_and_model_come_first_and_rare_flags_last(name: str) -> None:
    """Sections are in the order of FlagGroup; the first begins with what every job needs."""
    found = sections(help_of(name))
    groups = [group.value for group in FlagGroup if group.value in found]
    assert [title for title in found if title in groups] == groups
    assert [entry.split()[0] for entry in found[FlagGroup.job]][:3] == ["DATA...", "--model", "-o,"]
    assert list(found)[-3:] == [FlagGroup.rare, "Options", "Examples"]
    assert found["Options"] == ["-h, --help"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_end_the_help(name: str) -> None:
    """There are three, and each is a command with flags that it has."""
    lines = help_of(name).rstrip().splitlines()
    examples = lines[lines.index("Examples:") + 1 :]
    assert len(examples) == 3
    known = dict(commands())
    for example in examples:
        words = shlex.split(example)
        start = words.index("qtune") + 1
        typed = next(" ".join(words[start : start + n]) for n in (2, 1) if " ".join(words[start : start + n]) in known)
        options = {option for param in known[typed].params for option in param.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, example


def test_the_list_of_commands_says_what_each_command_says() -> None:
    """A line of the list is the first sentence of the command's own help."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert Commands.lazy[name].summary == first_sentence(command.help), name


def test_help_in_a_real_terminal() -> None:
    """80 columns wide: headings are bold, and no line is longer than the terminal."""
    outer, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*QTUNE, "prune", "--help"], stdout=inner, stderr=inner, env=environment({"TERM": "xterm"})
    )
    os.close(inner)
    shown = b""
    while part := _read(outer):
        shown += part
    assert process.wait(60) == 0
    os.close(outer)
    text = shown.decode()
    assert "\x1b[1mData, model and result:\x1b[0m" in text
    assert max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in text.splitlines()) <= 80


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_the_list_of_commands_is_quick() -> None:
    """It imports neither the fields of jobs nor a library of data, models or HTTP: these would take most of it."""
    heavy = ("pydantic", "rich", "httpx", "pyarrow", "numpy", "duckdb", "torch", "ray", "transformers")
    code = (
        "import sys, contextlib; from qtune_service.cli import main; sys.argv = ['qtune', '--help']\n"
        f"try: main()\nfinally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "prune" in done.stdout


@pytest.mark.parametrize("name", ["prune", "estimate", "jobs submit"])
def test_help_of_a_command_imports_no_heavy_library(name: str) -> None:
    """Flags are made from the fields of a job, which need pydantic alone."""
    heavy = ("httpx", "pyarrow", "numpy", "duckdb", "torch", "ray", "transformers")
    code = (
        f"import sys; from qtune_service.cli import main; sys.argv = ['qtune', *{name.split()}, '--help']\n"
        f"try: main()\nfinally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
