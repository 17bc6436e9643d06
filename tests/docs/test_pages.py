"""The documentation does what it says: every command on its pages runs, every link and picture is there."""

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
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
OTHERS = [
    "../README.md",
    "../SECURITY.md",
    "../CONTRIBUTING.md",
    *sorted(f"adr/{path.name}" for path in (DOCS / "adr").glob("*.md")),
    *sorted(f"../benchmarks/{path.name}" for path in (REPO / "benchmarks").glob("*.md")),
]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^\$ (qtune [^\n]*)\n([^\n]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"(?:^ *|-- |/bin/|&& |; )qtune ([^\n#|;&]*)", re.MULTILINE)


def commands(page: str) -> list[str]:
    """The blocks of a page that are to be typed."""
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def type_in(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in a shell that has the command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment({"PATH": path}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def type_along(page: str, folder: Path) -> None:
    """Run a page's blocks from its first to its last."""
    for block in commands(page):
        done = type_in(block, folder)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which somebody has followed the tutorial; the other pages go on from there."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "deploy"):
        (folder / name).symlink_to(REPO / name)
    type_along("tutorial.md", folder)
    return folder


def test_the_tutorial_leaves_what_it_promises(checkout: Path) -> None:
    """A report, a pruned dataset, another ratio, exports."""
    for path in ("demo/report.html", "demo/pruned", "quarter/manifest.json", "half-tokens/manifest.json", "trl", "hub"):
        assert (checkout / "out" / path).exists(), path


@pytest.mark.parametrize("page", [page for page in PAGES if page != "tutorial.md" and commands(page)])
def test_commands_run(page: str, checkout: Path) -> None:
    """In the order in which they stand."""
    type_along(page, checkout)


def test_shown_commands_answer_as_shown(checkout: Path) -> None:
    """Those of inspect.md, which stand with their answers: they succeed, or fail where an error is shown."""
    page = (DOCS / "inspect.md").read_text(encoding="utf-8")
    shown = SHOWN.findall(page)
    assert len(shown) > 10
    for command, answer in shown:
        done = type_in(re.sub(r"inspect out\b", "inspect out/demo", command), checkout)
        assert done.returncode == (2 if answer.startswith("error:") else 0), f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_every_command_is_one_that_there_is(page: str) -> None:
    """Also in blocks that no test can run: every `qtune` there is a command, with flags that it has."""
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
    """Nobody ends at a missing page, or at its top where a section was meant."""
    here = DOCS / page
    found = [(here.parent / target if target else here, anchor) for target, anchor in LINK.findall(here.read_text())]
    assert [str(target) for target, _ in found if not target.exists()] == []
    assert [(str(target), anchor) for target, anchor in found if anchor and anchor not in anchors(target)] == []


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", found).strip().lower().replace(" ", "-") for found in HEADING.findall(text)}


def test_the_index_names_every_page() -> None:
    """A page that nobody finds is none."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if page != "README.md" and f"]({page})" not in index] == []
