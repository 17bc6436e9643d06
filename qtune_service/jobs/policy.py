"""What submitted jobs may touch: only what the server's owner allowed.

A job reads files, writes files and loads a model with the server's rights, and some of its fields name code. Each such
field is checked here, after links are followed: a folder is allowed with all that lies really in it, a URI by a prefix
that ends at a `/`. URIs with a query or credentials are refused, since these could send the server elsewhere. Links
that lie in an allowed folder are its owner's: a pattern or a folder follows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qtune_service.config import JobSpec
from qtune_service.errors import NotAllowedError
from qtune_service.jobs.dataset_uris import id_of_uri


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

    def check(self, spec: JobSpec) -> None:
        """Raise NotAllowedError that names the first field that asks for too much."""
        for path in spec.input.paths:
            if id_of_uri(path) is not None:
                continue  # the server's own; that it is there is checked with the job's submission
            _require(_is_below(path, self.inputs), "input.paths", path, self.inputs)
        _require(_is_below(spec.output.path, self.outputs), "output.path", spec.output.path, self.outputs)
        if spec.from_scores is not None:
            _require(_is_below(spec.from_scores, self.outputs), "from_scores", spec.from_scores, self.outputs)
        for field, name in (("model.name", spec.model.name), ("model.tokenizer", spec.model.tokenizer)):
            if name is not None:
                _require(self._allows_model(name), field, name, self.models)
        self._check_code(spec)
        template = spec.input.chat_template
        if template is not None and "{" not in template:
            _require(_is_below(template, self.inputs), "input.chat_template", template, self.inputs)

    def _allows_model(self, name: str) -> bool:
        if _is_below(name, [root for root in self.models if Path(root).is_absolute() or "://" in root]):
            return True
        is_id = not Path(name).is_absolute() and "://" not in name and ".." not in name.split("/")
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


def _is_below(place: str, roots: Iterable[str]) -> bool:
    """Whether a path or URI lies in one of the roots, or is one."""
    return any(_uri_below(place, root) if "://" in place else _path_below(place, root) for root in roots)


def _path_below(place: str, root: str) -> bool:
    """Of a pattern, the folder before its first wildcard."""
    if "://" in root or not Path(place).is_absolute() or ".." in Path(place).parts:
        return False
    fixed, *pattern = re.split(r"[*?\[]", place, maxsplit=1)
    folder = Path(f"{fixed}x").parent if pattern else Path(place)
    real, real_root = folder.resolve(), Path(root).resolve()
    return real == real_root or real_root in real.parents


def _uri_below(place: str, root: str) -> bool:
    if "://" not in root:
        return False
    parts = urlsplit(place)
    if parts.query or parts.fragment or parts.username or parts.password or ".." in unquote(parts.path).split("/"):
        return False
    trimmed = root.rstrip("/")
    return place.rstrip("/") == trimmed or place.startswith(f"{trimmed}/")
