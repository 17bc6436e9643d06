"""Check that a submitted job reads, writes and loads only paths, models and code that the administrator allows.

A job reads files, writes files and loads a model with the server's rights, and some of its fields name code. Each such
field is checked after links are followed. A folder is allowed with its real content, a URI by a prefix that ends at a
`/`. URIs with a query or credentials are refused, because these could send the server to another host. A dataset of the
hub is read with the server's token, so it is allowed by its name or by its organization, and without the references of
pull requests, which other users write.

`Policy.settle` also resolves ambiguous fields: a chat template becomes its text, an output its real path. A spec is
settled again when its job starts, because settings and links may have changed since the submission. Only the driver
knows which files a pattern or folder matches, so it checks these against the same roots (`ingest/discovery.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qtune_service.config import JobSpec
from qtune_service.errors import NotAllowedError, SpecError
from qtune_service.server.jobs.dataset_uris import id_of_uri
from qtune_service.storage.confined import is_really_below, local_path
from qtune_service.storage.hub_uri import PREFIX, HubUri, is_hub
from qtune_service.tokenize.named_sources import is_template, is_trl_name, model_folder, read_chat_template
from qtune_service.vllm_arguments import refused_by_server

_MODEL_ID = re.compile(r"[\w.:+= -]{1,200}(?:/[\w.:+= -]{1,200}){0,2}")
_REVISION = re.compile(r"(?!(?:refs|pr|pull)(?:/|$))\w[\w.-]{0,200}(?:/\w[\w.-]{0,200}){0,8}", re.ASCII | re.IGNORECASE)
"""A branch, tag or commit. `refs/pr/N` and its short forms in git hold pull requests of other users."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Paths, models and code that jobs may use."""

    inputs: Sequence[str] = ()
    """Folders and URI prefixes that jobs may read."""
    outputs: Sequence[str] = ()
    """Folders and URI prefixes that jobs may write to and take scores from."""
    models: Sequence[str] = ()
    """Folders of models, hub ids, and prefixes of ids that end in `/`."""
    remote_code: bool = False
    """Whether a job may name code: a model's own, a rule, an engine."""

    def settle(self, spec: JobSpec) -> JobSpec:
        """Check a spec and return it with its template as text and its output's real path.

        Raise NotAllowedError that names the first field that is not allowed, and SpecError where the file of a template
        cannot be used.
        """
        self.check(spec)
        template = spec.input.chat_template
        text = {} if template is None else {"chat_template": read_chat_template(template, tuple(self.inputs))}
        return spec.model_copy(
            update={
                "input": spec.input.model_copy(update=text),
                "output": spec.output.model_copy(update={"path": real_output(spec.output.path)}),
            }
        )

    def check(self, spec: JobSpec) -> None:
        """Raise NotAllowedError that names the first field that is not allowed."""
        for path in spec.input.paths:
            if id_of_uri(path) is not None:
                continue  # an uploaded dataset; `require_datasets` checks that it exists
            on_hub = is_hub(path)
            allowed = _hub_allows(path, self.inputs) if on_hub else _is_below(path, self.inputs, may_be_pattern=True)
            _require(allowed, "input.paths", path, self.inputs)
        _require(_is_inside(spec.output.path, self.outputs), "output.path", spec.output.path, self.outputs)
        if spec.from_scores is not None:
            _require(_is_below(spec.from_scores, self.outputs), "from_scores", spec.from_scores, self.outputs)
        for field, name in (("model.name", spec.model.name), ("model.tokenizer", spec.model.tokenizer)):
            if name is not None:
                _require(self._allows_model(name), field, name, self.models)
        revision = spec.model.revision
        if revision is not None and not _is_own_revision(revision):
            raise NotAllowedError(
                f"model.revision: {_shown(revision)!r} is not allowed here",
                "Give a branch, a tag or a commit. Others, such as refs/pr/1, hold pull requests of other users.",
            )
        self._check_code(spec)
        template = spec.input.chat_template
        if template is not None and not is_template(template) and not is_trl_name(template):
            _require(_is_below(template, self.inputs), "input.chat_template", template, self.inputs)

    def _allows_model(self, name: str) -> bool:
        """Return whether a folder is in an allowed folder, or a hub id is allowed by itself or by its prefix."""
        if "://" in name:
            return _is_below(name, self.models)
        if (folder := model_folder(name)) is not None:
            return _is_below(str(folder), [root for root in self.models if Path(root).is_absolute()])
        is_id = _MODEL_ID.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))
        return is_id and any(
            name == allowed or (allowed.endswith("/") and name.startswith(allowed)) for allowed in self.models
        )

    def _check_code(self, spec: JobSpec) -> None:
        if self.remote_code:
            return
        named = {
            "model.trust_remote_code": "true" if spec.model.trust_remote_code else None,
            "prune.quadrant_rule": spec.prune.quadrant_rule if spec.prune else None,
            "engine.name": spec.engine.name if ":" in spec.engine.name else None,
        }
        for field, value in named.items():
            if value is not None:
                raise NotAllowedError(f"{field}: this server does not allow code in jobs, got {value!r}", _CODE_HINT)
        if (name := refused_by_server(spec.engine.vllm)) is not None:
            value = _shown(str(spec.engine.vllm[name]))
            raise NotAllowedError(f"engine.vllm: this server does not allow {name} = {value!r} in jobs", _CODE_HINT)


_CODE_HINT = "The administrator can allow it with QTUNE_ALLOW_REMOTE_CODE=true."


def _is_own_revision(revision: str) -> bool:
    """Return whether a revision is a branch, tag or commit, not a reference that other users write."""
    return _REVISION.fullmatch(revision) is not None and ".." not in revision


def _hub_allows(path: str, roots: Iterable[str]) -> bool:
    """Return whether a path on the hub is in an allowed dataset, or in a dataset of an allowed organization."""
    try:
        uri = HubUri.parse(path)
    except SpecError:
        return False
    if uri.revision is not None and not _is_own_revision(uri.revision):
        return False
    return any(_hub_below(uri, root.rstrip("/")) for root in roots if is_hub(root))


def _hub_below(uri: HubUri, root: str) -> bool:
    """Return whether a path is below a root: an organization, a dataset, a revision or a folder of it."""
    try:
        allowed = HubUri.parse(root)
    except SpecError:  # an organization, or all datasets
        return "@" not in root and f"{PREFIX}{uri.repository}/".startswith(f"{root}/")
    if allowed.repository != uri.repository or allowed.revision not in (None, uri.revision):
        return False
    return not allowed.path or f"{uri.path}/".startswith(f"{allowed.path}/")


def _require(is_allowed: bool, field: str, value: str, allowed: Iterable[str]) -> None:
    if not is_allowed:
        known = ", ".join(allowed) or "nothing"
        raise NotAllowedError(f"{field}: {_shown(value)!r} is not allowed here", f"The administrator allows: {known}.")


def _shown(path: str) -> str:
    """Return a path or URI for a message: at most 500 characters, without a URI's user, password and query."""
    return re.sub(r"//[^/@]*@", "//...@", path.partition("?")[0])[:500] if "://" in path else path[:500]


def real_output(path: str) -> str:
    """Return the canonical name of an output: a local path after links, or a URI without slashes at its end."""
    is_local = "://" not in path or path.startswith("file://")
    return str(local_path(path).resolve()) if is_local else path.rstrip("/")


def _is_inside(path: str, roots: Sequence[str]) -> bool:
    """Return whether an output is below one of the roots and is not a root itself."""
    below = path.partition("://")[2]
    if not _is_below(path, roots) or any(sign in below for sign in ("//", "/./", "%")):  # other spellings of a path
        return False
    return all(real_output(path) != real_output(root) for root in roots)


def _is_below(path: str, roots: Iterable[str], *, may_be_pattern: bool = False) -> bool:
    """Return whether a path or URI is a root or below one. A pattern counts as the folder before its wildcards."""
    if "://" in path:
        return any(_uri_below(path, root) for root in roots)
    if not Path(path).is_absolute() or ".." in Path(path).parts:
        return False
    fixed, *wildcard = re.split(r"[*?\[]", path, maxsplit=1) if may_be_pattern else [path]
    folder = Path(f"{fixed}x").parent if wildcard else Path(path)
    return is_really_below(folder, tuple(roots))


def _uri_below(path: str, root: str) -> bool:
    trimmed = root.rstrip("/")
    if "://" not in root or not (path.rstrip("/") == trimmed or path.startswith(f"{trimmed}/")):
        return False
    try:
        parts = urlsplit(path)
    except ValueError:
        return False
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password) and "::" not in parts.path
    if not is_plain or ".." in unquote(parts.path).split("/"):
        return False
    return parts.scheme != "file" or is_really_below(local_path(path), (str(local_path(root)),))
