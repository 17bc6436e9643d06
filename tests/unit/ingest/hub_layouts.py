"""Layouts of dataset repositories, and the files that the `datasets` library selects for them.

python -m tests.unit.ingest.hub_layouts < [[REPOSITORY, CONFIG], ...] > [{split: [path]} or error, ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROW = '{"prompt": "a", "completion": "b"}\n'


def card(yaml: str) -> str:
    """Return a card with this YAML."""
    return f"---\n{yaml.strip()}\n---\n\n# A dataset\n"


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a repository."""

    files: Mapping[str, str]
    configs: tuple[str | None, ...] = (None,)
    """Configurations to compare. None: the default one."""
    skipped: str = field(default="")
    """The reason for which the library and this package differ."""


def rows(*paths: str) -> dict[str, str]:
    """Return files of one row each."""
    return dict.fromkeys(paths, ROW)


LAYOUTS: dict[str, Layout] = {
    "one file": Layout({"README.md": "# Words without YAML", **rows("data.jsonl")}),
    "no card": Layout(rows("a.jsonl", "b.jsonl")),
    "names of splits": Layout(rows("train.jsonl", "test.jsonl")),
    "names with keywords": Layout(rows("gsm8k_train.jsonl", "gsm8k-dev.v2.jsonl", "eval_1.jsonl", "other.jsonl")),
    "folders of splits": Layout(rows("train/a.jsonl", "train/b.jsonl", "test/a.jsonl")),
    "nested folders": Layout(rows("data/en/train/x.jsonl", "data/en/validation/x.jsonl", "data/de/train/y.jsonl")),
    "pushed shards": Layout(
        rows(
            "data/train-00000-of-00002.jsonl",
            "data/train-00001-of-00002.jsonl",
            "data/test-00000-of-00001.jsonl",
            "data/extra-00000-of-00001.jsonl",
        )
    ),
    "split folders of shards": Layout(rows("train/0000.jsonl", "train/0001.jsonl", "test/0000.jsonl")),
    "hidden and metadata files": Layout(
        {
            **rows("data.jsonl", ".hidden.jsonl", ".cache/x.jsonl", "__old__/x.jsonl"),
            "dataset_infos.json": "{}",
            "config.json": "{}",
            ".gitattributes": "",
            "script.py": "",
        }
    ),
    "several kinds": Layout(rows("a.jsonl", "b.jsonl", "a.csv")),
    "a text": Layout(
        {"README.md": card("configs:\n- config_name: x\n  data_files: sub/*.jsonl"), **rows("sub/a.jsonl", "b.jsonl")}
    ),
    "a list of texts": Layout(
        {
            "README.md": card("configs:\n- config_name: default\n  data_files:\n  - a.jsonl\n  - sub/*.jsonl"),
            **rows("a.jsonl", "b.jsonl", "sub/c.jsonl", "sub/d.jsonl"),
        }
    ),
    "a list of splits": Layout(
        {
            "README.md": card("""
configs:
- config_name: default
  data_files:
  - split: train
    path: "part/train-*"
  - split: heldout
    path:
    - h1.jsonl
    - part/h2.jsonl
"""),
            **rows("part/train-1.jsonl", "part/train-2.jsonl", "h1.jsonl", "part/h2.jsonl", "left.jsonl"),
        }
    ),
    "several configurations": Layout(
        {
            "README.md": card("""
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/**}
- config_name: folder
  data_dir: extra
"""),
            **rows("main/train-0.jsonl", "main/test-0.jsonl", "socratic/a.jsonl", "socratic/b/c.jsonl"),
            **rows("extra/train.jsonl", "extra/deep/test.jsonl"),
        },
        (None, "main", "socratic", "folder", "missing"),
    ),
    "no default": Layout(
        {
            "README.md": card("configs:\n- config_name: a\n  data_files: a/*\n- config_name: b\n  data_files: b/*"),
            **rows("a/x.jsonl", "b/x.jsonl"),
        },
        (None, "a", "b"),
    ),
    "a folder and patterns": Layout(
        {
            "README.md": card("configs:\n- config_name: default\n  data_dir: v2\n  data_files: '*.jsonl'"),
            **rows("v1/a.jsonl", "v2/b.jsonl", "c.jsonl"),
        }
    ),
    "two stars": Layout(
        {
            "README.md": card("configs:\n- config_name: default\n  data_files: '**/x*.jsonl'"),
            **rows("x1.jsonl", "a/x2.jsonl", "a/b/x3.jsonl", "a/y.jsonl", ".git/x4.jsonl"),
        }
    ),
    "yaml beside the card": Layout(
        {
            "README.md": card("license: mit"),
            ".huggingface.yaml": "configs:\n- config_name: default\n  data_files: b.jsonl\n",
            **rows("a.jsonl", "b.jsonl"),
        }
    ),
    "a missing file": Layout(
        {"README.md": card("configs:\n- config_name: d\n  data_files: nope.jsonl"), **rows("a.jsonl")}
    ),
    "nothing": Layout({"README.md": card("license: mit"), "script.py": "", "picture.txt2": ""}),
    "characters": Layout(rows("data/train/a b#ü%.jsonl", "data/train/[x].jsonl", "data/test/{y}.jsonl")),
}


def main() -> None:
    """Print the files of each requested configuration."""
    from datasets import load_dataset_builder

    found: list[Any] = []
    for repository, config in json.load(sys.stdin):
        try:
            files = load_dataset_builder(repository, config).config.data_files
            found.append({str(split): list(paths) for split, paths in files.items()})
        except (ValueError, FileNotFoundError) as error:
            found.append(f"{type(error).__name__}: {error}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
