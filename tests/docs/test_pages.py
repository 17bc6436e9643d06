"""Check the documentation: every command on its pages runs, every link and image exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from qtune_service.cli import app
from tests.jobs import REPO, environment

DOCS = REPO / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.parent.name != "adr")
OTHERS = [
    "../README.md",
    "../CONTRIBUTING.md",
    "../SECURITY.md",
    *(f"../{path.relative_to(REPO)}" for path in sorted(REPO.glob("examples/*/README.md"))),
    *(f"../{path.relative_to(REPO)}" for path in sorted(REPO.glob("benchmarks/*/*.md"))),
    *(str(path.relative_to(DOCS)) for path in sorted((DOCS / "adr").glob("*.md"))),
]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^\$ (qtune [^\n]*)\n([^\n]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"(?:^ *|-- |/bin/|&& |; )qtune ([^\n#|;&]*)", re.MULTILINE)


def commands(page: str) -> list[str]:
    """Return the shell blocks of a page."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def type_in(block: str, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a block in a shell that has the command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def type_along(page: str, folder: Path) -> None:
    """Run a page's blocks from its first to its last."""
    for block in commands(page):
        done = type_in(block, folder)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with out/demo, as `make demo` leaves it. The commands of the pages use it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "deploy"):
        (folder / name).symlink_to(REPO / name)
    recipe = re.search(r"^demo:.*\n\t(.*)\\\n(.*)\n", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    done = type_in("".join(recipe.groups()).replace("$(BIN)/", ""), folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page != "quickstart.md" and commands(page)])
def test_commands_run(page: str, checkout: Path) -> None:
    """The shell blocks of a page run in order. test_quickstart.py runs those of the quickstart."""
    type_along(page, checkout)


def test_shown_commands_answer_as_shown(checkout: Path) -> None:
    """The examples of the inspect guide succeed, or fail where the page shows an error."""
    page = (DOCS / "guides" / "inspect.md").read_text(encoding="utf-8")
    shown = SHOWN.findall(page)
    assert len(shown) > 10
    for command, answer in shown:
        done = type_in(re.sub(r"inspect out\b", "inspect out/demo", command), checkout)
        assert done.returncode == (2 if answer.startswith("error:") else 0), f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_every_command_is_one_that_there_is(page: str) -> None:
    """Every `qtune` command in any block exists and has the flags that the block uses."""
    for block in FENCED.findall((DOCS / page).read_text(encoding="utf-8")):
        for line in TYPED.findall(block.replace("\\\n", " ")):
            command, words = typer.main.get_command(app), line.split()
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
            assert not hasattr(command, "commands"), f"qtune {line}"
            flags = {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)} | {"--help"}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= flags, f"qtune {line}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_and_pictures_are_there(page: str) -> None:
    """Every relative link leads to an existing file and section."""
    here = DOCS / page
    found = [(here.parent / target if target else here, anchor) for target, anchor in LINK.findall(here.read_text())]
    assert [str(target) for target, _ in found if not target.exists()] == []
    assert [(str(target), anchor) for target, anchor in found if anchor and anchor not in anchors(target)] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub builds them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", found).strip().lower().replace(" ", "-") for found in HEADING.findall(text)}


def test_the_index_links_every_page() -> None:
    """The index has a link to every page."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if page != "index.md" and f"]({page})" not in index] == []


def test_pages_wrap_at_100_characters() -> None:
    """Prose lines have at most 100 characters. Tables, blocks and links may be longer."""
    for page in PAGES:
        text = FENCED.sub("", (DOCS / page).read_text(encoding="utf-8"))
        if "Written by `make docs`" not in text:
            long = [line for line in text.splitlines() if len(line) > 100 and not line.lstrip().startswith(("|", "!["))]
            assert [line for line in long if "](" not in line] == [], page
