"""What must not be imported where."""

from __future__ import annotations

import subprocess
import sys


def test_the_api_side_loads_no_torch_ray_or_vllm() -> None:
    """config, ingest, tokenize, selection, output, report and the command's help load none of the heavy libraries."""
    modules = "config, selection.thresholds, selection.token_masks, ingest.planner, tokenize.encoder, report.html"
    modules += ", report.terminal, output.query, report.terminal_samples, cli, cli.inspect_views"
    imports = "\n".join(f"import qtune_service.{name.strip()}" for name in modules.split(","))
    code = f"{imports}\nimport sys\nprint([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
