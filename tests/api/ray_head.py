"""A small HTTP server that answers as Ray's Jobs API does, and in ways that a real cluster does not on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.api.local_http import Meeting, answering

TOKEN = "the-cluster's-token"


@dataclass(slots=True)
class Head:
    """What it knows, what it was asked, and how it behaves."""

    address: str = ""
    version: str = "4"
    mode: Literal["good", "broken", "loses answers", "not Ray"] = "good"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    is_stoppable: bool = True
    asked: list[str] = field(default_factory=list)


@contextmanager
def ray_head() -> Iterator[Head]:
    """Serve until the block ends."""
    head = Head()

    class Handler(_Handler):
        pass

    Handler.head = head
    with answering(Handler) as head.address:
        yield head


class _Handler(Meeting):
    head: Head

    def meet(self) -> None:
        """Answer as the mode says."""
        head = self.head
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        head.asked.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(403 if "Authorization" in self.headers else 401, "Unauthorized")
        elif head.mode == "broken":
            self._say(500, "Traceback (most recent call last):\n  ...\nRuntimeError: the agent is away\n")
        elif head.mode == "not Ray":
            self._say(200, "<html>Welcome</html>")
        elif self.path == "/api/version":
            self._say(200, {"version": head.version, "ray_version": "9.9.9"})
        elif self.path == "/api/jobs/":
            self._submit(json.loads(body))
        else:
            self._job(*self.path.removeprefix("/api/jobs/").split("/"))

    def _submit(self, submission: dict[str, Any]) -> None:
        name = submission["submission_id"]
        if name in self.head.jobs:  # the agent's 400 reaches the client as a 500
            self._say(500, f"ValueError: Job with submission_id {name} already exists.")
            return
        self.head.jobs[name] = {"status": "PENDING", **submission}
        if self.head.mode == "loses answers":
            self.close_connection = True
            self.connection.close()
            return
        self._say(200, {"job_id": name, "submission_id": name})

    def _job(self, name: str, act: str = "") -> None:
        head = self.head
        if name not in head.jobs:
            self._say(404, f"Job {name} does not exist")
        elif act == "stop":
            head.stops.append(name)
            self._say(200, {"stopped": head.is_stoppable})
        elif act == "logs":
            self._say(200, {"logs": head.logs.get(name, "")})
        elif self.command == "DELETE":
            del head.jobs[name]
            self._say(200, {"deleted": True})
        else:
            self._say(200, head.jobs[name])

    def _say(self, status: int, body: Any) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing to the terminal."""
