"""Write the images of docs/ from a finished run of the demo: screenshots of charts in its report.

    make demo && python scripts/draw_pictures.py out/demo

The image of tokens shows the same run, pruned again without --min-tokens-to-prune. The script needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PIECES = {"plane": "plane", "ranks": "ranks", "what-if": "what_if"}
"""Name of the image -> chart of the report."""


def qtune(*arguments: str) -> None:
    """Run a qtune command."""
    subprocess.run([sys.executable, "-m", "qtune_service.cli", *arguments], check=True)


def open_report(page: Page, output: Path) -> None:
    """Open the report of an output and wait for its charts."""
    page.goto((output / "report.html").resolve().as_uri())
    page.wait_for_selector("[data-chart=plane] :is(svg, canvas)")


def draw(output: Path) -> None:
    """Write all images."""
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
        open_report(page, output)
        for name, chart in PIECES.items():
            page.locator(f".chart:has([data-chart={chart}])").screenshot(path=IMAGES / f"{name}.png")
        pruned = Path(folder) / "tokens"
        qtune("prune", "--from-scores", str(output), "--output", str(pruned))
        open_report(page, pruned)
        samples = page.locator("details.sample", has=page.locator(".r"))  # samples with removed tokens
        samples.first.evaluate("(box) => (box.open = true)")
        samples.first.screenshot(path=IMAGES / "tokens.png")
        browser.close()
    plot = str(IMAGES / "strategies.png")
    qtune("compare", str(output), "--ratios", "0.25", "0.5", "--by", "planted", "--plot", plot)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
