"""Jobs that are killed, stopped, or cannot go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.jobs import DEMO_MODEL, REPO, manifest, qtune, rows, start, write_jsonl
from tests.ray.test_job import chat

DEMO_DATA = REPO / "examples" / "demo" / "data.jsonl"


def job(out: Path, *more: object) -> tuple[object, ...]:
    """A job of many small shards, in float32."""
    common = ("prune", DEMO_DATA, "--limit", 600, "--shard-bytes", 8192, "--model", DEMO_MODEL, "--dtype", "float32")
    return (*common, "--output", out, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job run to its end without a fault."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = qtune(*job(out, "--engine", "vllm"))
    assert done.returncode == 0, done.stderr
    return out


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    """Wait until the condition holds; fails if the job ends before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the job ended too early: {process.stdout.read() if process.stdout else ''}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def finished_shards(out: Path) -> int:
    """Shards that are scored and marked."""
    return len(list((out / "_qtune" / "scored").glob("*.json")))


def assert_same(a: Path, b: Path) -> None:
    """Same rows, same masks, scores to 1e-6."""
    left, right = (sorted(rows(p / "scores"), key=lambda r: str(r["sample_id"])) for p in (a, b))
    assert [r["sample_id"] for r in left] == [r["sample_id"] for r in right]
    for x, y in zip(left, right, strict=True):
        assert x["input_ids"] == y["input_ids"]
        np.testing.assert_allclose(x["nll"], y["nll"], atol=1e-6, rtol=0)
        np.testing.assert_allclose(x["entropy"], y["entropy"], atol=1e-6, rtol=0)
    kept = [{r["qtune"]["sample_id"]: r["loss_mask"] for r in rows(p / "pruned")} for p in (a, b)]
    assert kept[0] == kept[1]


def test_a_killed_driver_resumes_to_the_same_output(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of the whole driver while scoring, run again: nothing twice, nothing lost, the same output."""
    out = tmp_path / "out"
    process = start(*job(out, "--engine", "vllm"))
    wait_for(lambda: finished_shards(out) >= 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survived = {p.name: p.stat().st_mtime_ns for p in (out / "scores").glob("*.parquet")}
    assert not (out / "manifest.json").exists()
    marked = finished_shards(out)
    done = qtune(*job(out, "--engine", "vllm"))
    assert done.returncode == 0, done.stderr
    assert f"continuing: {marked} of" in done.stderr
    kept_as_they_were = sum((out / "scores" / n).stat().st_mtime_ns == t for n, t in survived.items())
    assert kept_as_they_were >= marked, "a finished shard was scored again"
    assert_same(undisturbed, out)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    """SIGINT ends with code 130 and one sentence, no stack; the same command continues."""
    out = tmp_path / "out"
    process = start(*job(out, "--engine", "vllm"))
    wait_for(lambda: finished_shards(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 130, text
    assert "run the same command again" in text
    assert "Traceback" not in text
    done = qtune(*job(out, "--engine", "vllm"))
    assert done.returncode == 0, done.stderr
    assert_same(undisturbed, out)


def test_an_interrupted_prune_stage_continues(undisturbed: Path, tmp_path: Path) -> None:
    """A crash between scoring and the manifest costs only what was not written."""
    out = tmp_path / "out"
    process = start(*job(out, "--engine", "vllm"))
    wait_for((out / "pruned").is_dir, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = qtune(*job(out, "--engine", "vllm"))
    assert done.returncode == 0, done.stderr
    assert_same(undisturbed, out)


def test_two_drivers_do_not_share_an_output(tmp_path: Path) -> None:
    """The second command on the same output is refused while the first one runs."""
    out = tmp_path / "out"
    process = start(*job(out, "--engine", "reference"))
    wait_for((out / "_qtune" / "job.json").exists, process)
    second = qtune(*job(out, "--engine", "reference"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert second.returncode == 2
    assert "another qtune process" in second.stderr


def test_changed_input_is_refused(tmp_path: Path) -> None:
    """Input that changed since the plan is named, not mixed in."""
    data = write_jsonl(tmp_path / "d.jsonl", [chat(f"{i}?", f"it is {i}") for i in range(400)])
    common = ("--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o")
    arguments = ("prune", data, *common, "--shard-bytes", 2048)
    process = start(*arguments)
    wait_for(lambda: finished_shards(tmp_path / "o") >= 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    write_jsonl(data, [chat(f"{i}!", f"it is {i}") for i in range(400)])
    done = qtune(*arguments)
    assert done.returncode == 3
    assert "d.jsonl" in done.stderr
    assert "changed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("{data}", "--model", "{tmp}/none"), 4, ["{tmp}/none", "does not exist"]),
        (("{tmp}/none.jsonl", "--model", DEMO_MODEL), 3, ["none.jsonl"]),
        (("{data}", "--model", DEMO_MODEL, "--sample-keep-ratio", "1.5"), 2, ["sample_keep_ratio"]),
        (("{data}",), 2, ["--model"]),
        (("{data}", "--model", DEMO_MODEL, "--prompt-column", "a"), 2, ["completion_column"]),
        (("{data}", "--model", DEMO_MODEL, "--take", "x"), 2, ["--take"]),
        (("{data}", "--model", DEMO_MODEL, "--max-model-len", "999999"), 4, ["max_model_len", "positions"]),
        (("{odd}", "--model", DEMO_MODEL), 3, ["odd.jsonl", "format", "colour"]),
        (("{data}", "--model", DEMO_MODEL, "--ray-address", "127.0.0.1:1"), 4, ["127.0.0.1:1"]),
        (("{data}", "--model", DEMO_MODEL, "--quadrant-rule", "nowhere:f"), 2, ["nowhere"]),
    ],
)
def test_wrong_use_gets_one_clear_message(
    arguments: tuple[str, ...], code: int, words: list[str], tmp_path: Path
) -> None:
    """Each mistake ends with its exit code and one message that names it, without a stack."""
    names = {
        "data": write_jsonl(tmp_path / "d.jsonl", [chat("a?", "b")]),
        "odd": write_jsonl(tmp_path / "odd.jsonl", [{"colour": "red"}]),
        "tmp": tmp_path,
    }
    done = qtune("prune", *(a.format(**names) for a in arguments), "--engine", "reference", "--output", tmp_path / "o")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word.format(**names) in done.stderr.replace("\n", " ")


def test_too_many_rejected_rows_fail_the_job_and_may_be_allowed(tmp_path: Path) -> None:
    """The limit on rejected rows ends the job with their reasons; raising it continues without scoring again."""
    data = tmp_path / "d.jsonl"
    write_jsonl(data, [chat("a?", "b b b"), chat("b?", "c c c")])
    data.write_text(data.read_text() + "broken\n" * 8)
    arguments = ("prune", data, "--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o")
    done = qtune(*arguments)
    assert done.returncode == 3
    assert "8 of 10" in done.stderr
    assert "bad_json" in done.stderr
    assert len(rows(tmp_path / "o" / "rejected")) == 8
    done = qtune(*arguments, "--max-rejected-ratio", 0.9)
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path / "o")["counts"]["rejected"] == 8


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """Where the output cannot grow, the job says so and what to do."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small filesystem")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        done = qtune(*job(small / "o", "--engine", "reference"))
        assert done.returncode == 4, done.stderr
        assert "full" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)
