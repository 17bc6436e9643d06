#!/usr/bin/env python3
"""A driver for tests of the service: it does what its spec's `name` of the model says, without a model.

Called as the launcher calls Python: `driver.py -m qtune_service.cli run SPEC`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

spec = json.loads(Path(sys.argv[-1]).read_text())
out = Path(spec["output"]["path"])
(out / "_qtune").mkdir(parents=True, exist_ok=True)
act, _, argument = spec["model"]["name"].partition(" ")


def own() -> None:
    """Write whose output it is, as the real driver does first."""
    record = out / "_qtune" / "job.json"
    if not record.exists():
        record.write_text(
            json.dumps({"fingerprint": "", "job": os.environ["QTUNE_JOB"].partition(":")[0], "spec": spec})
        )


def tell(**more: object) -> None:
    """Write progress.json."""
    history = {"at_s": [1.0, 3.0], "samples_done": [0, 3], "tokens_done": [0, 90], "tokens_per_s": [0.0, 45.0]}
    body = {"stage": "score", "done": 3, "total": 8, "tokens_done": 90, "tokens_per_s": 12.34, "eta_s": 4.56}
    all_of_it = {**body, "history": history, "updated_at_s": time.time(), **more}
    (out / "_qtune" / "progress.json").write_text(json.dumps(all_of_it))


def stopped(_signal: int, _frame: object) -> None:
    """Save and end."""
    (out / "saved").touch()
    sys.exit(143)


def note(what: str) -> None:
    """Note when the driver begins and ends."""
    (out / "span").open("a").write(f"{what} {time.time()}\n")


signal.signal(signal.SIGTERM, signal.SIG_IGN if act == "stubborn" else stopped)
sys.stdout.write(f"attempt {os.environ['QTUNE_JOB'].partition(':')[2]}\n")
sys.stdout.flush()
(out / "starts").open("a").write("x")
note("begin")
own()
tell()
if act == "slow" or (act == "succeed" and argument):
    time.sleep(float(argument))
if act != "sleep":
    note("end")
if act in ("succeed", "slow"):
    manifest = {"spec": spec, "counts": {"read": 8, "kept": 4}, "thresholds": {"alpha": 0.5}}
    (out / "manifest.json").write_text(json.dumps(manifest))
elif act == "fail":
    tell(error={"code": "data", "message": "none of 8 records could be scored", "hint": "look"})
    sys.exit(3)
elif act == "vanish":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    time.sleep(float(argument or 60))
