"""Run the quickstart as a reader does: its shell commands, then its training script."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.test_pages import DOCS, type_in
from tests.jobs import REPO

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
RESULT = re.compile(r"^(\w+): (\d+) samples, held-out loss ([\d.]+) -> ([\d.]+)$", re.MULTILINE)
PAGE = (DOCS / "quickstart.md").read_text(encoding="utf-8")


def test_the_quickstart_ends_with_a_better_model(tmp_path: Path) -> None:
    """Every block runs in order, and the trained models predict held-out answers better than before."""
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
    done = type_in("HF_HOME=$PWD/hf HF_HUB_OFFLINE=1 python train.py", tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    measured, shown = RESULT.findall(done.stdout), RESULT.findall(PAGE)
    assert len(shown) == 3
    for (name, count, before, after), (shown_name, shown_count, shown_before, shown_after) in zip(
        measured, shown, strict=True
    ):
        assert name == shown_name
        assert abs(int(count) - int(shown_count)) <= 15, "a repeated row occurs 15 times"
        assert float(after) < float(before), name
        assert abs(float(before) - float(shown_before)) < 0.01, name
        assert abs(float(after) - float(shown_after)) < 0.05, name
