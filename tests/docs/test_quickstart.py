"""Run the quickstart as a reader does: its shell commands, then its training script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_pages import DOCS, type_in
from tests.jobs import REPO

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RESULT = re.compile(r"^(\w+) +(\d+) samples  (\w+) +([\d.]+) -> ([\d.]+)$", re.MULTILINE)
PAGE = (DOCS / "quickstart.md").read_text(encoding="utf-8")


@pytest.mark.timeout(1500)
def test_the_quickstart_ends_with_a_better_model(tmp_path: Path) -> None:
    """Every block runs in order, and the trained models predict corrections of myths better than before."""
    (tmp_path / "examples").symlink_to(REPO / "examples")
    blocks = BLOCK.findall(PAGE)
    languages = [language for language, _ in blocks]
    assert languages == sorted(languages, reverse=True), "shell first, then one script"
    for language, block in blocks:
        if language == "sh":
            done = type_in(block, tmp_path)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    script = "\n\n".join(block for language, block in blocks if language == "python")
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    # One thread: torch's threads wait actively, which takes minutes beside the other tests on two cores.
    done = type_in("HF_HOME=$PWD/hf HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python train.py", tmp_path, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    measured, shown = ({row[:3:2]: row for row in RESULT.findall(text)} for text in (done.stdout, PAGE))
    assert measured.keys() == shown.keys()
    assert len(shown) == 12
    for key, (_, count, _, before, after) in measured.items():
        _, shown_count, _, shown_before, shown_after = shown[key]
        assert abs(int(count) - int(shown_count)) <= 15, "a repeated row occurs 15 times"
        assert abs(float(before) - float(shown_before)) < 0.02, key
        assert abs(float(after) - float(shown_after)) < 0.1, key
    for name in ("half", "random", "all"):
        *_, before, after = measured[name, "misconception"]
        assert float(after) < float(before), name
