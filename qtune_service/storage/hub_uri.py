"""Parse URIs of datasets on the Hugging Face hub: `hf://datasets/ORG/NAME[@REVISION][/PATH]`.

The grammar is that of `huggingface_hub`: a slash in a revision is written as `%2F`, except in `refs/pr/N` and
`refs/convert/NAME`. Other kinds of repositories are refused. This module imports no library, so that a server can
check URIs cheaply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import quote, unquote

from qtune_service.errors import SpecError

PREFIX = "hf://datasets/"
COMMIT = re.compile(r"[0-9a-f]{40}")
_REFERENCE = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
_REPOSITORY = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/(?P<repository>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?P<action>blob|resolve|tree|raw)/(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/?#]+)(?P<path>/[^?#]*)?)?",
    re.ASCII,
)
_KINDS = {"models": "a model", "spaces": "a space", "buckets": "a bucket", "kernels": "a kernel"}
_FORM = "A dataset of the hub is named hf://datasets/ORG/NAME, hf://datasets/ORG/NAME@REVISION, or with a path behind."


def is_hub(uri: str) -> bool:
    """Return whether a path is a URI of the hub, of any kind."""
    return uri[:5].lower() == "hf://"


@dataclass(frozen=True, slots=True)
class HubUri:
    """A dataset repository, a revision of it, and a path or glob in it."""

    repository: str
    """ORG/NAME"""
    revision: str | None = None
    """Branch, tag, commit or reference, decoded. None: the default branch."""
    path: str = ""

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse a URI. Raise SpecError for another kind of repository and for a wrong form."""
        kind, _, rest = uri[5:].partition("/")
        if not is_hub(uri) or kind != "datasets":
            what = _KINDS.get(kind, "a model")
            raise SpecError(f"cannot read {uri[:200]}: it names {what} of the hub, not a dataset", _FORM)
        organization, _, rest = rest.partition("/")
        name, at, rest = _split(rest)
        revision = None
        if at == "@":
            match = _REFERENCE.match(rest)
            raw = match.group() if match else rest.partition("/")[0]
            revision, rest = unquote(raw), rest[len(raw) :]
        path = rest.strip("/")
        repository = f"{organization}/{name}"
        is_wrong_path = bool(path) and bool({"", ".", ".."} & set(path.split("/")))
        if _REPOSITORY.fullmatch(repository) is None or revision == "" or is_wrong_path:
            raise SpecError(f"cannot read {uri[:200]}: it is not the name of a dataset", _FORM)
        return cls(repository, revision, path)

    @property
    def root(self) -> HubUri:
        """Return the repository at this revision, without a path."""
        return replace(self, path="")

    @property
    def is_pinned(self) -> bool:
        """Return whether the revision is a commit."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def pinned(self, commit: str) -> HubUri:
        """Return the same path at a commit."""
        return replace(self, revision=commit)

    def at(self, path: str) -> HubUri:
        """Return another path at the same revision."""
        return replace(self, path=path)

    def __str__(self) -> str:
        """Return the URI."""
        is_plain = self.revision is None or _REFERENCE.fullmatch(self.revision) is not None
        revision = self.revision if is_plain else quote(self.revision or "", safe="")
        return f"{PREFIX}{self.repository}{f'@{revision}' if revision else ''}{f'/{self.path}' if self.path else ''}"


def of_web_page(url: str) -> HubUri | None:
    """Return the dataset that a page of huggingface.co shows, with revision and path; None for another address."""
    match = _PAGE.match(url)
    if match is None:
        return None
    action, revision, path = match["action"], match["revision"], match["path"]
    if action is None or revision is None:
        return HubUri(match["repository"])
    return HubUri(
        match["repository"], None if revision == "main" else unquote(revision), unquote(path or "").strip("/")
    )


def _split(text: str) -> tuple[str, str, str]:
    """Split at the first `@` or `/`."""
    match = re.search(r"[@/]", text)
    return (text, "", "") if match is None else (text[: match.start()], match.group(), text[match.end() :])
