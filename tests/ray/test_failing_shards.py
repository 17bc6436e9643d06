"""A part of the input that cannot be read or scored costs that part at most, and only where `limits` allows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.jobs import DEMO_MODEL, QTUNE, environment, manifest, qtune, rows, write_jsonl
from tests.processes import finished, wait_for
from tests.ray.test_job import chat

LONG_TOKENS = 200
FRAGILE = f"""
import os, signal
from transformers import Qwen2ForCausalLM


class FragileForCausalLM(Qwen2ForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(die_of_long_sequences, with_kwargs=True)


def die_of_long_sequences(module, arguments, named):
    ids, places = named.get("input_ids", arguments[0] if arguments else None), named.get("position_ids")
    longest = int(places.max()) + 1 if places is not None else ids.shape[-1]  # sequences may be packed in a row
    if longest > {LONG_TOKENS}:
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""A model's own code that ends its process as the kernel does where memory runs out."""


@pytest.fixture
def fragile_model(tmp_path: Path) -> Path:
    """Return the demo model with code of its own that long samples kill."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["FragileForCausalLM"]}
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_fragile.FragileForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_fragile.py").write_text(FRAGILE)
    return folder


@pytest.mark.slow
def test_a_shard_that_kills_its_worker(fragile_model: Path, tmp_path: Path) -> None:
    """It is tried as often as `limits` says and fails the job at its end; allowed, its records are rejected."""
    records = [chat(f"{i}?", f"it is {i}") for i in range(120)]
    records[70] = chat("long?", "and on and on " * 40)  # some 340 tokens
    data, out = write_jsonl(tmp_path / "d.jsonl", records), tmp_path / "o"
    common = ("--model", fragile_model, "--trust-remote-code", "--engine", "reference", "--output", out)
    arguments = ("prune", data, *common, "--shard-bytes", 2048, "--max-shard-attempts", 2)
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = qtune(*arguments, env=env)
    assert done.returncode == 4, done.stderr
    assert "killed, crashed, or out of memory" in done.stderr
    assert "--max-failed-shards 1" in done.stderr
    assert "Traceback" not in done.stderr
    safe = len(finished(out))
    assert safe >= 3, "the other shards were not kept"
    done = qtune(*arguments, "--max-failed-shards", 1, env=env)
    assert done.returncode == 0, done.stderr
    assert f"continuing: {safe} of {safe + 1}" in done.stderr
    assert_lost_only_one_shard(out, num_records=120, line=71)


def assert_lost_only_one_shard(out: Path, *, num_records: int, line: int) -> None:
    """Check that the records of the failed shard, and no others, are rejected with its error."""
    counts, rejected = manifest(out)["counts"], rows(out / "rejected")
    assert counts["read"] == num_records == counts["scored"] + counts["rejected"]
    assert {r["reason"] for r in rejected} == {"shard_failed"}
    lines = sorted(r["line"] for r in rejected)
    assert line in lines
    assert lines == list(range(lines[0], lines[-1] + 1))
    assert set(lines).isdisjoint(r["line"] for r in rows(out / "scores"))


def without_root(command: Sequence[str]) -> list[str]:
    """Return the command with a user's rights to files. Root may read everything."""
    if os.geteuid() != 0:
        return [*command]
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to give up root's rights")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


def test_a_file_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    """Of two files one becomes unreadable while the job runs: the other one is scored, the error names it, and the same
    command completes the job once it can be read again.
    """
    data, out = tmp_path / "data", tmp_path / "o"
    data.mkdir()
    write_jsonl(data / "good.jsonl", [chat(f"{i}?", f"it is {i}") for i in range(100)])
    bad = write_jsonl(data / "locked.jsonl", [chat(f"{i}!", f"it was {i}") for i in range(60)])
    common = ("--model", DEMO_MODEL, "--engine", "reference", "--output", str(out))
    arguments = ["prune", str(data), *common, "--shard-bytes", "2048"]
    command = without_root([*QTUNE, *arguments])
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for((out / "_qtune" / "plan.json").exists, process)
    bad.chmod(0)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 4, text
    assert "locked.jsonl" in text
    assert "permission denied" in text
    assert "Traceback" not in text
    assert len(finished(out)) >= 4, "the shards of the good file were not kept"
    bad.chmod(0o644)
    done = qtune(*arguments)
    assert done.returncode == 0, done.stderr
    assert manifest(out)["counts"]["scored"] == 160
