"""A small Hugging Face hub over HTTP: the API that the installed `huggingface_hub` uses for datasets, and for reading
models.

Metadata and small files come from the endpoint. Files that are stored as large ones are redirected to a second server
with signed links, as the hub redirects to its CDN. That server refuses requests with a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".arrow", ".gz", ".zst", ".bin", ".safetensors")
"""Endings of files that are stored as large ones."""
CREATED = "2026-01-01T00:00:00.000Z"


@dataclass(slots=True)
class Repository:
    """A dataset or a model with its history: commits with all files, and names of commits."""

    name: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    """Users who may read it, in addition to its owner, where it is private or gated."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    """Such as `refs/pr/1`."""
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", message: str = "Add files") -> str:
        """Replace all files of a branch, and return the commit."""
        listing = "".join(f"{path} {hashlib.sha1(body).hexdigest()}\n" for path, body in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}\n{message}\n{listing}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch, tag, reference or commit."""
        names = {**self.references, **self.tags, **self.branches}
        return revision if revision in self.commits else names.get(revision)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that a server received."""

    server: str
    """`hub` or `storage`"""
    method: str
    path: str
    token: str | None
    range: str | None
    num_bytes: int
    """Length of the response's body."""


@dataclass(slots=True)
class Fault:
    """A response in place of the right one, for the next `times` requests whose path matches."""

    pattern: str
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1


@dataclass(slots=True)
class Hub:
    """The state of the servers."""

    url: str = ""
    storage_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=lambda: {"hf_reader": "reader", "hf_owner": "org"})
    """Token -> user."""
    read_only: set[str] = field(default_factory=lambda: {"hf_reader"})
    """Tokens without the right to write."""
    invalid_licenses: set[str] = field(default_factory=set)
    """Licenses that make a card invalid."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> large files that were sent to the storage."""
    xet_url: str = ""
    """Storage of Xet for large files: `local://FOLDER`, or an address. hf_xet writes chunks there, not files, so a test
    puts the files of a commit into `uploads`."""
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    page_size: int = 1000
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, name: str, files: Mapping[str, bytes | str], **options: Any) -> Repository:
        """Create a repository with one commit."""
        repository = self.repositories[name] = Repository(name, **options)
        repository.commit({path: body.encode() if isinstance(body, str) else body for path, body in files.items()})
        return repository

    def paths(self, pattern: str) -> list[str]:
        """Return the requested paths that match."""
        return [request.path for request in self.requests if re.search(pattern, request.path)]

    def env(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Return variables that point a process to this hub. home: HF_HOME, which has no login."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # uploads of large files go by LFS, not to the servers of xet
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({"HF_TOKEN": token} if token else {}),
        }


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run both servers in threads of this process."""
    hub = Hub()
    hub_class = type("HubHandler", (_HubHandler,), {"hub": hub})
    storage_class = type("StorageHandler", (_StorageHandler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), hub_class) as front, _Server(("127.0.0.1", 0), storage_class) as storage:
        for server in (front, storage):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{front.server_address[1]}"
        hub.storage_url = f"http://127.0.0.1:{storage.server_address[1]}"
        yield hub
        front.shutdown()
        storage.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    name = ""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def _respond(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        with self.hub.lock:
            if (fault := self._fault(parts.path)) is not None:
                self._send(fault.status, b"", {"X-Error-Message": "at random", **fault.headers})
                return
            self.answer(parts.path)

    def _fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def answer(self, path: str) -> None:
        raise NotImplementedError

    @property
    def token(self) -> str | None:
        header = self.headers.get("Authorization") or ""
        return header.removeprefix("Bearer ") or None

    def _json(self, value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._json({"error": message}, headers, status)

    def _content(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a file, or the requested range of it."""
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            self._send(200, body, {"Accept-Ranges": "bytes", **headers})
            return
        start, stop = int(span[1]), min(int(span[2] or len(body)) + 1, len(body))
        if start >= len(body):
            self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        self._send(206, body[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}", **headers})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        sent = body if self.command != "HEAD" else b""
        range_, path = self.headers.get("Range"), self.path
        self.hub.requests.append(Request(self.name, self.command, path, self.token, range_, len(sent)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)


class _StorageHandler(_Handler):
    """The storage of large files: signed links only."""

    name = "storage"

    def answer(self, path: str) -> None:
        oid = path.rpartition("/")[2]
        if self.query.get("Signature") != [_signature(oid)] or self.token is not None:
            self._send(403, b"", {})
        elif self.command == "PUT":
            self.hub.uploads[oid] = self.body
            self._send(200, b"", {})
        else:
            bodies = (
                body for repo in self.hub.repositories.values() for of in repo.commits.values() for body in of.values()
            )
            found = next(body for body in bodies if hashlib.sha256(body).hexdigest() == oid)
            self._content(found, {"ETag": f'"{oid}"'})


def _signature(oid: str) -> str:
    return hashlib.sha256(f"secret {oid}".encode()).hexdigest()


class _HubHandler(_Handler):
    """The hub itself."""

    name = "hub"

    def answer(self, path: str) -> None:
        if self.token is not None and self.token not in self.hub.users:
            self._error(401, "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/validate-yaml":
            text = json.loads(self.body)["content"]
            wrong = [name for name in self.hub.invalid_licenses if f"license: {name}" in text]
            errors = [{"message": f'"license" must not be {name}'} for name in wrong]
            self._json({"errors": errors, "warnings": []}, status=400 if wrong else 200)
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif match := re.fullmatch(r"/datasets/(.+?)\.git/info/lfs/objects/batch", path):
            if self._writable(match[1]):
                self._batch(json.loads(self.body))
        elif match := re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(.*))?", path):
            self._of_repository(match[1], match[2] or "", is_api=path.startswith("/api/"))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            self._of_repository(match[1], match[2] or "", is_api=True)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/(resolve/.*)", path):
            self._of_repository(match[1], match[2], is_api=False)
        else:
            self._error(404, "Sorry, we can't find the page you are looking for.")

    def _whoami(self) -> None:
        if self.token is None:
            self._error(401, "Invalid username or password.")
        else:
            role = "read" if self.token in self.hub.read_only else "write"
            auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
            self._json({"type": "user", "name": self.hub.users[self.token], "orgs": [], "auth": auth})

    def _of_repository(self, name: str, rest: str, *, is_api: bool) -> None:
        repository = self.hub.repositories.get(name)
        user = self.hub.users.get(self.token or "")
        may_read = repository is not None and (user == name.partition("/")[0] or user in repository.readers)
        if repository is None or (repository.private and not may_read):
            self._error(401 if user is None else 404, "Repository not found", "" if user is None else "RepoNotFound")
            return
        what, _, rest = rest.partition("/")
        if not is_api:
            if repository.gated and not may_read:
                self._error(401 if user is None else 403, f"Access to dataset {name} is restricted.", "GatedRepo")
                return
            self._resolve(repository, rest)
        elif what == "refs":
            self._json(_refs(repository))
        elif what == "xet-write-token":
            if self._writable(name):
                self._json({"casUrl": self.hub.xet_url, "accessToken": "xet", "exp": 4102444800})
        elif what in ("preupload", "commit"):
            if self._writable(name):
                self._preupload(repository, rest) if what == "preupload" else self._commit(repository, rest)
        else:
            self._metadata(repository, what, rest)

    def _metadata(self, repository: Repository, what: str, rest: str) -> None:
        raw, path = _split_revision(rest)
        revision = raw or "main"
        sha = repository.resolve(revision)
        if sha is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        files = repository.commits[sha]
        if what in ("", "revision"):
            about = {"_id": "1", "id": repository.name, "sha": sha, "private": repository.private}
            siblings = [{"rfilename": name} for name in files]
            self._json({**about, "gated": "auto" if repository.gated else False, "siblings": siblings})
        elif what == "tree":
            self._tree(files, path)
        else:
            entries = [_entry(files, path) for path in parse_qs(self.body.decode()).get("paths", [])]
            self._json([entry for entry in entries if entry is not None])

    def _tree(self, files: Mapping[str, bytes], folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        below = [path for path in files if path.startswith(prefix)]
        if folder and not below:
            self._error(404, f"{folder} does not exist", "EntryNotFound")
            return
        is_recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        names = {f"{prefix}{part}" for path in below for part in _parents(path.removeprefix(prefix))}
        listed = sorted(name for name in names if is_recursive or "/" not in name.removeprefix(prefix))
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.hub.page_size
        path, _, _ = self.path.partition("?")
        link = f'<{self.hub.url}{path}?recursive={is_recursive}&cursor={stop}>; rel="next"'
        self._json([_entry(files, name) for name in listed[start:stop]], {"Link": link} if stop < len(listed) else {})

    def _resolve(self, repository: Repository, rest: str) -> None:
        revision, path = _split_revision(rest)
        sha = repository.resolve(revision)
        if sha is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        elif path not in repository.commits[sha]:
            self._error(404, "Entry not found", "EntryNotFound")
        else:
            body = repository.commits[sha][path]
            oid, headers = hashlib.sha256(body).hexdigest(), {"X-Repo-Commit": sha}
            if not path.endswith(LARGE):
                self._content(body, {"ETag": f'"{_git_id(body)}"', **headers})
                return
            link = f"{self.hub.storage_url}/{oid}?Signature={_signature(oid)}"
            linked = {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{oid}"', "Location": link}
            self._send(302, b"", {**headers, **linked})

    # --- writing

    def _writable(self, name: str) -> bool:
        """Return whether the token may write. Otherwise send the refusal."""
        user = self.hub.users.get(self.token or "")
        if user is None:
            self._error(401, "Invalid username or password.")
        elif user != name.partition("/")[0] or self.token in self.hub.read_only:
            self._error(403, "Forbidden: pass a token with write access")
        return user is not None and user == name.partition("/")[0] and self.token not in self.hub.read_only

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or self.hub.users.get(self.token or '')}/{wanted['name']}"
        if not self._writable(name):
            return
        if name in self.hub.repositories:
            self._json({"error": "You already created this dataset repo", "url": f"{self.hub.url}/{name}"}, status=409)
            return
        made = self.hub.add(name, {".gitattributes": "*.parquet filter=lfs\n"})
        made.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self._json({"url": f"{self.hub.url}/datasets/{name}", "name": name, "id": "1"})

    def _preupload(self, repository: Repository, _: str) -> None:
        current = repository.commits[repository.branches["main"]]
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        **({"oid": _oid(file["path"], current[file["path"]])} if file["path"] in current else {}),
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def _batch(self, request: dict[str, Any]) -> None:
        objects = []
        for one in request["objects"]:
            link = {"href": f"{self.hub.storage_url}/{one['oid']}?Signature={_signature(one['oid'])}"}
            known = one["oid"] in self.hub.uploads
            objects.append({**one, **({} if known else {"actions": {"upload": link}})})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, revision: str) -> None:
        branch = unquote(revision)
        files = dict(repository.commits[repository.branches[branch]])
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(files, branch, message)
        url = f"{self.hub.url}/datasets/{repository.name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def _split_revision(text: str) -> tuple[str, str]:
    """Split the quoted `REVISION/PATH`; a reference may have slashes."""
    match = re.match(r"(refs/(?:pr/\d+|convert/[\w.-]+)|[^/]*)/?", text)
    assert match is not None
    return unquote(match[1]), unquote(text[match.end() :])


def _refs(repository: Repository) -> dict[str, Any]:
    def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    return {"branches": listed("heads", repository.branches), "converts": [], "tags": listed("tags", repository.tags)}


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        yield "/".join(parts[:length])


def _entry(files: Mapping[str, bytes], path: str) -> dict[str, Any] | None:
    """Return the description of a file or folder."""
    if path not in files:
        is_folder = any(name.startswith(f"{path}/") for name in files)
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} if is_folder else None
    body = files[path]
    found: dict[str, Any] = {"type": "file", "oid": _git_id(body), "size": len(body), "path": path}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return found


def _oid(path: str, body: bytes) -> str:
    return hashlib.sha256(body).hexdigest() if path.endswith(LARGE) else _git_id(body)


def _git_id(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()


def new_name() -> str:
    """Return a repository name that no earlier test has used, since the library caches by name."""
    return f"org/{secrets.token_hex(4)}"
