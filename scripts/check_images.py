#!/usr/bin/env python3
"""Build the images `api` and `worker-cpu` without a registry, run them, and prune through them. Standard library only.

    sudo python3 scripts/check_images.py [--folder DIR] [--images api worker-cpu]      # or: make image-check

Needs Linux, root, buildah and mmdebstrap. The base image is a Debian with Python made by mmdebstrap, under the name
that the Dockerfile's FROM asks for: a stand-in for the official one. Containers are chroots with the network of this
machine, so their addresses are 127.0.0.1 with free ports, and what they may not write to is seen by the user's rights,
not by a read-only mount. pip's settings of this machine (a mirror, a folder of wheels) go into the builds. About 20 GB
and, the first time, half an hour; layers stay in DIR for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASE = "docker.io/library/python:3.11-slim-bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
BASE_DOCKERFILE = """FROM scratch
ADD base.tar /
RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""
WRITABLE = ("/var/lib/qtune", "/tmp", "/var/tmp", "/dev", "/proc", "/sys", "/run/lock", "/shared")  # noqa: S108
ABSENT = {"api": ("torch", "ray", "vllm"), "worker-cpu": ("torchvision", "torchaudio")}
JOB_S = 600
STOPPED = 128 + signal.SIGTERM
"""The exit status of a job that was told to stop."""


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buildah = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str, quiet: bool = True) -> str:
        """Run a command of it; what it says. Raises CalledProcessError."""
        output = subprocess.PIPE if quiet else None
        return (subprocess.run([*self._buildah, *arguments], check=True, stdout=output, text=True).stdout or "").strip()

    def make_base(self) -> None:
        """Make a stand-in for the official Python image."""
        if BASE in self("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return
        context = self.folder / "base"
        context.mkdir(parents=True, exist_ok=True)
        made = ["--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", str(context / "base.tar")]
        subprocess.run(["mmdebstrap", *made], check=True)
        (context / "Dockerfile").write_text(BASE_DOCKERFILE)
        self("bud", "--isolation", "chroot", "--pull-never", "-t", BASE, str(context), quiet=False)
        shutil.rmtree(context)

    def build(self, target: str) -> str:
        """One target of the Dockerfile; the image's name."""
        name = f"localhost/qtune/{target}:check"
        mounts = [part for mount in self._mounts() for part in ("-v", mount)]
        options = ["--isolation", "chroot", "--pull-never", "--layers", *mounts]
        self("bud", *options, "--target", target, "-t", name, str(ROOT), quiet=False)
        return name

    def _mounts(self) -> list[str]:
        """Return this machine's certificates, pip settings and the folders that these name."""
        listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
        settings = dict(line.split("=", 1) for line in listed.splitlines() if line.startswith(("global.", "install.")))
        conf = self.folder / "pip.conf"
        lines = [f"{name.split('.', 1)[1]} = {value.strip(chr(39))}" for name, value in settings.items()]
        conf.write_text("\n".join(["[global]", *lines, ""]))
        words = " ".join(settings.values()).replace("file://", " ").replace("'", " ").split()
        tops = {Path(*Path(word).parts[:3]) for word in words if word.startswith("/") and Path(word).is_dir()}
        return [f"{path}:{path}:ro" for path in (CERTIFICATES, *sorted(tops)) if path.exists()] + [
            f"{conf}:/etc/pip.conf:ro"
        ]

    def size_mb(self, image: str) -> float:
        """Return the size of an image as it is unpacked."""
        found: list[dict[str, Any]] = json.loads(self("images", "--json", image))
        return float(found[0]["size"].split()[0]) * {"MB": 1, "GB": 1000}[found[0]["size"].split()[1]]

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """Run a container of an image until the block ends."""
        name = self("from", "--pull-never", image)
        try:
            yield Container([*self._buildah, "run", "--isolation", "chroot"], name, self.folder)
        finally:
            self("rm", name)


class Container:
    """Commands in one container, by the image's user; the demo is mounted at /demo, a common folder at /shared."""

    def __init__(self, run: list[str], name: str, folder: Path) -> None:
        shared = folder / "shared"
        shared.mkdir(exist_ok=True)
        shared.chmod(0o777)
        self._shared = shared
        mounts = ["-v", f"{ROOT / 'examples' / 'demo'}:/demo:ro", "-v", f"{shared}:/shared"]
        self._prefix = [*run, *mounts, name, "--"]

    def run(self, *command: str) -> str:
        """Return the output of a command. Raises CalledProcessError."""
        return subprocess.run([*self._prefix, *command], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    @contextmanager
    def running(
        self, name: str, *command: str, env: dict[str, str] | None = None, grace_s: float = 60
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command under tini. SIGTERM stops it as `docker stop` does, and it must end in time."""
        pid = self._shared / f"{name}.pid"
        variables = [f"{key}={value}" for key, value in (env or {}).items()]
        shell = ["sh", "-c", f'echo $$ > /shared/{name}.pid; exec "$@"', "sh", "env", *variables, "tini", "-s", "--"]
        process = subprocess.Popen([*self._prefix, *shell, *command])
        try:
            yield process
        finally:
            if process.poll() is None:
                os.kill(int(pid.read_text()), signal.SIGTERM)
            process.wait(grace_s)


def main() -> int:
    """Build, run, prune; 0 where all went well, 2 where this machine lacks a tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "images")
    parser.add_argument("--images", nargs="+", choices=tuple(ABSENT), default=list(ABSENT))
    options = parser.parse_args()
    missing = [tool for tool in ("buildah", "mmdebstrap", "pip") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        missing.append("root's rights")
    if missing:
        say(f"images cannot be checked here: {', '.join(missing)} missing. Debian: apt-get install buildah mmdebstrap")
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(options.folder.resolve())
    builder.make_base()
    images = {target: builder.build(target) for target in options.images}
    for target, image in images.items():
        check(builder, target, image)
    if "worker-cpu" in images:
        stop_and_go_on(builder, images["worker-cpu"])
    if len(images) == len(ABSENT):
        prune_through_the_service(builder, images)
    say("all well")
    return 0


def check(builder: Builder, target: str, image: str) -> None:
    """Check the image's user, what it lacks, and the folders that it may write to."""
    with builder.container(image) as container:
        say(f"{target}: {builder.size_mb(image):,.0f} MB unpacked, {container.run('qtune', '--version')}")
        expect(container.run("id", "-u") == "10001", f"{target}: runs as another user")
        for module in ABSENT[target]:
            looked = container.run("python", "-c", f"import importlib.util as u; print(u.find_spec({module!r}))")
            expect(looked == "None", f"{target}: has {module}")
        places = container.run("sh", "-c", "find / -xdev -writable -not -type l 2>/dev/null || true").splitlines()
        wrong = [place for place in places if not place.startswith(WRITABLE)]
        expect(not wrong, f"{target}: its user may write to {wrong[:5]}")


def stop_and_go_on(builder: Builder, image: str) -> None:
    """`docker stop` of a job saves what it has in hand within the grace period; the same command then goes on."""
    out = builder.folder / "shared" / "stopped"
    command = ["qtune", "prune", "/demo/data.jsonl", "--model", "/demo/model", "--dtype", "float32"]
    command += ["--shard-bytes", "4096", "--output", "/shared/stopped"]
    with builder.container(image) as worker:
        worker.run("sh", "-c", "rm -rf /shared/stopped")
        with worker.running("prune", *command) as process:
            until("a shard is scored", lambda: process.poll() is not None or bool(scored(out)), JOB_S)
        expect(process.returncode == STOPPED, f"a job that was stopped ended with {process.returncode}")
        saved = len(scored(out))
        expect(not (out / "manifest.json").exists(), "the job was over before it was stopped")
        say(f"SIGTERM ended a job, which keeps {saved} shards")
        done = worker.run("sh", "-c", f"{shlex.join(command)} 2>&1 || true")
        expect(f"continuing: {saved} of" in done, f"the job did not go on where it was: {done}")
        expect((out / "manifest.json").exists(), f"the job did not end: {done}")
        say("the same command went on from there to its end")


def scored(out: Path) -> list[Path]:
    """Markers of shards that are scored."""
    return list((out / "_qtune" / "scored").glob("*.json"))


def prune_through_the_service(builder: Builder, images: dict[str, str]) -> None:
    """Submit a job by REST from the api's container to the Ray head in the worker's container, and fetch the result."""
    gcs, dashboard, agent, client, port = (free_port() for _ in range(5))
    ray_env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/shared/token"}
    head = ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--port={gcs}"]
    head += [
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    api_env = {
        "QTUNE_HOST": "127.0.0.1",
        "QTUNE_PORT": str(port),
        "QTUNE_LAUNCHER": "ray",
        "QTUNE_RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "QTUNE_RAY_TOKEN_PATH": "/shared/token",
        "QTUNE_OUTPUTS_ROOT": "/shared/outputs",
        "QTUNE_ALLOWED_INPUTS": "/demo",
        "QTUNE_ALLOWED_MODELS": "/demo/model",
    }
    with builder.container(images["api"]) as api, builder.container(images["worker-cpu"]) as worker:
        (builder.folder / "shared" / "token").write_text(secrets.token_hex(32))
        api.run("sh", "-c", "rm -rf /shared/outputs; mkdir /shared/outputs")
        with worker.running("ray", *head, env=ray_env), api.running("api", "qtune", "serve", env=api_env):
            base = f"http://127.0.0.1:{port}"
            until("the api is healthy", lambda: ask(f"{base}/healthz") is not None, 60)
            until("the head is healthy", lambda: ask(f"http://127.0.0.1:{dashboard}/api/gcs_healthz") is not None, 120)
            until(
                "its node is healthy", lambda: ask(f"http://127.0.0.1:{agent}/api/local_raylet_healthz") is not None, 60
            )
            spec = {
                "input": {"paths": ["/demo/data.jsonl"], "limit": 300},
                "model": {"name": "/demo/model", "dtype": "float32"},
            }
            job = json.loads(ask(f"{base}/api/v1/jobs", spec) or "{}")
            say(f"submitted job {job['id']}")
            place = f"{base}/api/v1/jobs/{job['id']}"
            until("the job has ended", lambda: status(place) not in ("queued", "running"), JOB_S)
            expect(status(place) == "succeeded", f"the job {status(place)}: {ask(place)}\n{ask(place + '/logs')}")
            say(f"the job succeeded: {ask(place + '/summary')}"[:400])
        say("SIGTERM ended both")


def status(place: str) -> str:
    """Return the status of a job."""
    return str(json.loads(ask(place) or '{"status": "queued"}')["status"])


def ask(url: str, body: dict[str, Any] | None = None) -> str | None:
    """Return the answer, or None where there is none yet. Raises HTTPError for a request that is refused."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - of this machine
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code in (404, 503):
            return None
        raise SystemExit(f"{url}: {error.code} {error.read().decode()}") from error
    except OSError:
        return None


def until(what: str, reached: Callable[[], bool], seconds: float) -> None:
    """Wait. Ends the script where it takes too long."""
    started = time.monotonic()
    while not reached():
        expect(time.monotonic() - started < seconds, f"not after {seconds:.0f} s: {what}")
        time.sleep(1)
    say(f"{what}, after {time.monotonic() - started:.0f} s")


def expect(holds: bool, otherwise: str) -> None:
    """End the script where something is not as promised."""
    if not holds:
        raise SystemExit(f"[images] {otherwise}")


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def say(text: str) -> None:
    """Tell the user."""
    print(f"[images] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
