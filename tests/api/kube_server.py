"""A small HTTP server that answers as the Kubernetes API does of Ray's resources, with `Status` for all refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.api.local_http import Meeting, answering

NAMESPACE, TOKEN = "qtune", "the-account's-token"
ROOT = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/"


@dataclass(slots=True)
class Kube:
    """What it holds, what it was asked, and how it behaves."""

    address: str = ""
    account: Path = Path()
    token: str = TOKEN
    mode: Literal["good", "broken", "forbids", "loses answers", "no KubeRay"] = "good"
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By kind and name: `rayjobs/NAME`."""
    asked: list[str] = field(default_factory=list)

    def says(self, name: str, **status: Any) -> None:
        """Set the status that KubeRay writes about a RayJob."""
        self.objects[f"rayjobs/{name}"]["status"] = status


@contextmanager
def kubernetes(folder: Path) -> Iterator[Kube]:
    """Serve until the block ends; the account's files are in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "namespace").write_text(NAMESPACE)
    kube = Kube(account=folder)

    class Handler(_Handler):
        pass

    Handler.kube = kube
    with answering(Handler) as kube.address:
        yield kube


class _Handler(Meeting):
    kube: Kube

    def meet(self) -> None:
        """Answer as the mode says."""
        kube = self.kube
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kube.asked.append(f"{self.command} {self.path.removeprefix(ROOT)}")
        if self.headers.get("Authorization") != f"Bearer {kube.token}":
            self._refuse(401, "Unauthorized", "Unauthorized")
        elif kube.mode == "broken":
            self._refuse(503, "ServiceUnavailable", "etcdserver: leader changed")
        elif kube.mode == "forbids":
            account = f"system:serviceaccount:{NAMESPACE}:default"
            self._refuse(403, "Forbidden", f'rayjobs.ray.io is forbidden: User "{account}" cannot create resource')
        elif kube.mode == "no KubeRay":
            self._say(404, "404 page not found\n")
        elif self.command == "POST":
            self._create(json.loads(body))
        else:
            self._object(self.path.removeprefix(ROOT))

    def _create(self, sent: dict[str, Any]) -> None:
        name = sent["metadata"]["name"]
        key = f"rayjobs/{name}"
        if key in self.kube.objects:
            self._refuse(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists', name)
            return
        self.kube.objects[key] = sent
        if self.kube.mode == "loses answers":
            self.close_connection = True
            self.connection.close()
            return
        self._say(201, sent)

    def _object(self, key: str) -> None:
        kind, _, name = key.partition("/")
        if key not in self.kube.objects:
            self._refuse(404, "NotFound", f'{kind}.ray.io "{name}" not found', name)
        elif self.command == "DELETE":
            del self.kube.objects[key]
            self._say(200, {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"name": name}})
        else:
            self._say(200, self.kube.objects[key])

    def _refuse(self, code: int, reason: str, message: str, name: str = "") -> None:
        details = {"details": {"name": name, "group": "ray.io"}} if name else {}
        head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self._say(code, {**head, "message": message, "reason": reason, **details, "code": code})

    def _say(self, status: int, body: Any) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing to the terminal."""
