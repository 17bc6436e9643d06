"""Jobs that are killed, stopped, or lose a part of themselves, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.compare import differences
from tests.jobs import DEMO_MODEL, demo_job, manifest, qtune, rows, start, write_jsonl
from tests.processes import ACTOR, ENGINE, TASK, finished, kill_all, progress, titled, wait_for
from tests.ray.test_job import chat


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a job that is to complete; gives what it printed."""
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    return text


def complete(out: Path, *more: object, env: dict[str, str] | None = None) -> str:
    """Run the command again to its end; gives what it said."""
    done = qtune(*demo_job(out, *more), env=env)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 of the driver alone; its workers must see by themselves that it is gone."""
    workers = [*titled(ACTOR, [process.pid]), *titled(TASK, [process.pid])]
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "workers outlived their driver"


UNDISTURBED = {"reference": "undisturbed", "vllm": "undisturbed_vllm"}
"""Fixtures, by engine."""


@pytest.mark.parametrize("engine", ["reference", pytest.param("vllm", marks=pytest.mark.slow)])
def test_a_killed_driver_resumes_to_the_same_output(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Kill -9 of the driver while scoring, run again: nothing twice, nothing lost, the same output."""
    undisturbed: Path = request.getfixturevalue(UNDISTURBED[engine])
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", engine))
    wait_for(lambda: len(finished(out)) >= 5, process)
    kill(process)
    survived = {p: p.stat().st_mtime_ns for m in finished(out) for p in parts(out, "scores", m)}
    assert not (out / "manifest.json").exists()
    assert f"continuing: {len(finished(out))} of" in complete(out, "--engine", engine)
    assert {p: p.stat().st_mtime_ns for p in survived} == survived, "a finished shard was scored again"
    assert differences(undisturbed, out) == []


def parts(out: Path, folder: str, marker: str) -> list[Path]:
    """Return the Parquet files that the marker of a scored shard names in a folder."""
    files = json.loads((out / "_qtune" / "scored" / marker).read_text())["files"]
    return [out / file["path"] for file in files if file["path"].startswith(f"{folder}/")]


AFTER = {"plan": "score", "prune": "report"}
"""A stage may be over before it is seen."""


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(AFTER))
def test_a_driver_killed_in_another_stage_resumes(stage: str, undisturbed: Path, tmp_path: Path) -> None:
    """A crash while planning or pruning costs only what was not written."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "reference"))
    wait_for(lambda: progress(out).get("stage") in (stage, AFTER[stage]), process)
    kill(process)
    assert not (out / "manifest.json").exists()
    complete(out, "--engine", "reference")
    assert differences(undisturbed, out) == []


def test_killed_workers_are_replaced(undisturbed: Path, tmp_path: Path) -> None:
    """The job goes on by itself after kill -9 of its scoring actor, and of a task that encodes or writes."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "reference"))
    wait_for(lambda: titled(ACTOR, [process.pid]) and len(finished(out)) >= 2, process)
    kill_all(titled(ACTOR, [process.pid]))
    wait_for(lambda: titled(TASK, [process.pid]), process)
    kill_all(titled(TASK, [process.pid])[:1])
    end(process)
    assert differences(undisturbed, out) == []


@pytest.mark.slow
def test_a_killed_engine_process_is_replaced(undisturbed_vllm: Path, tmp_path: Path) -> None:
    """Where vLLM's engine has processes of its own and they are killed, the job gets a new one and goes on."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "vllm"), env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    wait_for(lambda: titled(ENGINE, [process.pid]) and len(finished(out)) >= 2, process)
    engines = {p.pid for p in titled(ENGINE, [process.pid])}
    kill_all(titled(ENGINE, [process.pid])[:1])
    wait_for(lambda: {p.pid for p in titled(ENGINE, [process.pid])} - engines, process)
    end(process)
    assert differences(undisturbed_vllm, out) == []


def test_ctrl_c_and_leftovers_of_a_crash(undisturbed: Path, tmp_path: Path) -> None:
    """SIGINT ends with 130 and one sentence, no stack. Half-written files of a crash do not hinder the next run."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "reference"))
    wait_for(lambda: len(finished(out)) >= 2, process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 130, text
    assert "run the same command again" in text
    assert "Traceback" not in text
    unfinished = next(i for i in range(100) if f"{i:05}.json" not in finished(out))
    (out / "scores" / f"part-{unfinished:05}.parquet").write_bytes(b"PAR1 half a file")
    (out / "rejected").mkdir(exist_ok=True)
    (out / "rejected" / f"part-{unfinished:05}.parquet").write_bytes(b"PAR1 of a run that rejected something here")
    (out / "scores" / f".part-{unfinished:05}.parquet.1-0a.tmp").write_bytes(b"half a write")
    (out / "_qtune" / "scored" / f".{unfinished:05}.json.1-0a.tmp").write_bytes(b"{")
    (out / "_qtune" / "progress.json").write_bytes(b"{")
    complete(out, "--engine", "reference")
    assert differences(undisturbed, out) == []


def test_sigterm_saves_what_is_in_hand(undisturbed: Path, tmp_path: Path) -> None:
    """SIGTERM while scoring ends with 143 within the grace period, and loses no shard that had been begun."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "reference"))
    wait_for(lambda: len(finished(out)) >= 2, process)
    before = finished(out)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143, text
    assert "run the same command again" in text
    assert "Traceback" not in text
    saved = len(finished(out)) + len(list((out / "_qtune" / "partial").glob("*.arrow")))
    assert saved > len(before), "what was in hand is lost"
    complete(out, "--engine", "reference")
    assert differences(undisturbed, out) == []


IN_RAY_GET = """
import os, ray, signal, threading, time
from qtune_service.pipeline.shutdown import Stop
ray.init(num_cpus=1, include_dashboard=False)
stop = Stop()
stop.install()
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
with stop.restored():
    ray.get(ray.remote(lambda: time.sleep(60)).remote())
"""


def test_sigterm_while_the_driver_waits_for_an_answer() -> None:
    """`ray.get` replaces what a signal handler raises. The exit code is that of a stop all the same."""
    done = subprocess.run([sys.executable, "-c", IN_RAY_GET], check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 143, done.stderr


def test_two_drivers_do_not_share_an_output(tmp_path: Path) -> None:
    """The second command on the same output is refused while the first one runs."""
    out = tmp_path / "out"
    process = start(*demo_job(out, "--engine", "reference"))
    wait_for((out / "_qtune" / "job.json").exists, process)
    second = qtune(*demo_job(out, "--engine", "reference"))
    kill(process)
    assert second.returncode == 2
    assert "another qtune process" in second.stderr


def test_changed_input_is_refused(tmp_path: Path) -> None:
    """Input that changed since the plan is named, not mixed in."""
    data = write_jsonl(tmp_path / "d.jsonl", [chat(f"{i}?", f"it is {i}") for i in range(400)])
    common = ("--model", DEMO_MODEL, "--engine", "reference", "--output", tmp_path / "o")
    arguments = ("prune", data, *common, "--shard-bytes", 2048)
    process = start(*arguments)
    wait_for(lambda: finished(tmp_path / "o"), process)
    kill(process)
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
        (("{data}", "--model", DEMO_MODEL, "--sample-keep-ratio", "1.5"), 2, ["--sample-keep-ratio"]),
        (("{data}",), 2, ["--model"]),
        (("{data}", "--model", DEMO_MODEL, "--prompt-column", "a"), 2, ["--completion-column"]),
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


def test_a_full_disk_is_one_message_and_space_continues(undisturbed: Path, tmp_path: Path) -> None:
    """Where the output cannot grow the job says so and what to do; with more space the same command completes it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small filesystem")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        done = qtune(*demo_job(small / "o", "--engine", "reference"))
        assert done.returncode == 4, done.stderr
        assert "full" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (small / "o" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        complete(small / "o", "--engine", "reference")
        assert differences(undisturbed, small / "o") == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
