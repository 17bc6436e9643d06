"""What submitted jobs may touch: only what the administrator allowed.

A job reads files, writes files and loads a model with the server's rights, and some of its fields name code. Each such
field is checked here, after links are followed: a folder is allowed with all that is really in it, a URI by a prefix
that ends at a `/`. URIs with a query or credentials are refused, since these could send the server elsewhere.

`settle` also decides, once, what every ambiguous field means: a chat template becomes its text, an output its real
path. Whoever starts a job settles its spec again, since the settings, or the links, may have changed meanwhile. Which
files a pattern or folder leads to is only known where the job runs: the driver checks these against the same roots
(`ingest/discovery.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qtune_service.config import JobSpec
from qtune_service.errors import NotAllowedError
from qtune_service.server.jobs.dataset_uris import id_of_uri
from qtune_service.storage.confined import is_really_below, local_path
from qtune_service.tokenize.named_sources import is_template, model_folder, read_chat_template


@dataclass(frozen=True, slots=True)
class Policy:
    """The owner's word."""

    inputs: Sequence[str] = ()
    """Folders and URI prefixes that jobs may read."""
    outputs: Sequence[str] = ()
    """The same of what they may write, and take scores from."""
    models: Sequence[str] = ()
    """Folders of models, hub ids, and prefixes of ids that end in `/`."""
    remote_code: bool = False
    """Whether a job may name code: a model's own, a rule, an engine."""

    def settle(self, spec: JobSpec) -> JobSpec:
        """Check a spec, and return it with its template as text and its output's real path.

        Raise NotAllowedError that names the first field that requests too much, and SpecError where the file of a
        template cannot be used.
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
        """Raise NotAllowedError that names the first field that requests too much."""
        for path in spec.input.paths:
            if id_of_uri(path) is not None:
                continue  # the server's own; that it is there is checked with the job's submission
            _require(_is_below(path, self.inputs, may_be_pattern=True), "input.paths", path, self.inputs)
        _require(_is_inside(spec.output.path, self.outputs), "output.path", spec.output.path, self.outputs)
        if spec.from_scores is not None:
            _require(_is_below(spec.from_scores, self.outputs), "from_scores", spec.from_scores, self.outputs)
        for field, name in (("model.name", spec.model.name), ("model.tokenizer", spec.model.tokenizer)):
            if name is not None:
                _require(self._allows_model(name), field, name, self.models)
        if (revision := spec.model.revision) is not None and not _is_revision(revision):
            raise NotAllowedError(
                f"model.revision: {_shown(revision)!r} is not allowed here",
                "Name a branch, a tag or a commit: other references hold what anybody proposed.",
            )
        self._check_code(spec)
        template = spec.input.chat_template
        if template is not None and not is_template(template):
            _require(_is_below(template, self.inputs), "input.chat_template", template, self.inputs)

    def _allows_model(self, name: str) -> bool:
        """Return whether a folder is in one of the allowed ones, or a hub id is named or has an allowed prefix."""
        if "://" in name:
            return _is_below(name, self.models)
        if (folder := model_folder(name)) is not None:
            return _is_below(str(folder), [root for root in self.models if Path(root).is_absolute()])
        is_id = _MODEL_ID.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))
        return is_id and any(name == allowed or _starts(name, allowed) for allowed in self.models)

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
                hint = "The server's owner can allow it by QTUNE_ALLOW_REMOTE_CODE=true."
                raise NotAllowedError(f"{field}: this server runs no code that a job names, got {value!r}", hint)


def _require(is_allowed: bool, field: str, value: str, allowed: Iterable[str]) -> None:
    if not is_allowed:
        known = ", ".join(allowed) or "nothing"
        raise NotAllowedError(f"{field}: {_shown(value)!r} is not allowed here", f"The server's owner allows: {known}.")


def _shown(place: str) -> str:
    """Without what may be a secret: a URI's user, password and options."""
    return re.sub(r"//[^/@]*@", "//...@", place.partition("?")[0])[:500] if "://" in place else place[:500]


def _starts(name: str, prefix: str) -> bool:
    return prefix.endswith("/") and name.startswith(prefix)


_MODEL_ID = re.compile(r"[\w.:+= -]{1,200}(?:/[\w.:+= -]{1,200}){0,2}")
_REVISION = re.compile(r"(?!(?:refs|pr|pull)(?:/|$))\w[\w.-]{0,200}(?:/\w[\w.-]{0,200}){0,8}", re.ASCII | re.IGNORECASE)
"""A branch, tag or commit. `refs/pr/N` and what git takes for it hold proposals of strangers."""


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text


def real_output(path: str) -> str:
    """Return the one name of an output: a local path after links, or a URI without slashes at its end."""
    is_local = "://" not in path or path.startswith("file://")
    return str(local_path(path).resolve()) if is_local else path.rstrip("/")


def _is_inside(place: str, roots: Sequence[str]) -> bool:
    """Return whether an output is below one of the roots, and is none itself."""
    below = place.partition("://")[2]
    if not _is_below(place, roots) or any(sign in below for sign in ("//", "/./", "%")):  # other names of a place
        return False
    return all(real_output(place) != real_output(root) for root in roots)


def _is_below(place: str, roots: Iterable[str], *, may_be_pattern: bool = False) -> bool:
    """Return whether a path or URI is in one of the roots, or is one; of a pattern, the folder before its wildcards."""
    if "://" in place:
        return any(_uri_below(place, root) for root in roots)
    if not Path(place).is_absolute() or ".." in Path(place).parts:
        return False
    fixed, *wildcard = re.split(r"[*?\[]", place, maxsplit=1) if may_be_pattern else [place]
    folder = Path(f"{fixed}x").parent if wildcard else Path(place)
    return is_really_below(folder, tuple(roots))


def _uri_below(place: str, root: str) -> bool:
    trimmed = root.rstrip("/")
    if "://" not in root or not (place.rstrip("/") == trimmed or place.startswith(f"{trimmed}/")):
        return False
    try:
        parts = urlsplit(place)
    except ValueError:
        return False
    is_plain = not (parts.query or parts.fragment or parts.username or parts.password) and "::" not in parts.path
    if not is_plain or ".." in unquote(parts.path).split("/"):
        return False
    return parts.scheme != "file" or is_really_below(local_path(place), (str(local_path(root)),))
