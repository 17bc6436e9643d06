"""Translate failures of `huggingface_hub`: what happened, for which dataset, and what to do.

What may pass becomes a TransientError with the server's Retry-After, which `filesystems.retrying` waits for. The rest
becomes a StorageError that names the dataset and the remedy. Texts of the library are not shown, because they can
contain signed URLs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import cast

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from qtune_service.errors import StorageError
from qtune_service.storage.filesystems import TransientError
from qtune_service.storage.hub_uri import HubUri

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_WAIT_S = 330.0
"""Longest pause that Retry-After can request. The hub limits the requests of five minutes."""
MAX_NAMES, MAX_MESSAGE = 10, 300
HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""HTTPError of httpx or httpx2, by the version of huggingface_hub."""
TOO_MANY = "The hub limits the rate of requests. Wait some minutes, or log in: a token has a higher limit."


def endpoint() -> str:
    """Return the address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def api() -> HfApi:
    """Return a client of the hub's API."""
    return HfApi(endpoint=endpoint(), library_name="qtune-service")


def has_token() -> bool:
    """Return whether HF_TOKEN is set or a login is stored."""
    return get_token() is not None


@contextlib.contextmanager
def translated(uri: HubUri, action: str = "read") -> Iterator[None]:
    """Raise failures of the library as StorageError or TransientError. FileNotFoundError of a path stays."""
    try:
        yield
    except (StorageError, TransientError):
        raise
    except OfflineModeIsEnabled as error:
        raise StorageError(
            f"cannot {action} {uri}: HF_HUB_OFFLINE forbids requests to the hub", "Unset it, or read local files."
        ) from error
    except FileNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise explained(error.__cause__, uri, action) from error
        raise
    except EntryNotFoundError as error:
        raise FileNotFoundError(str(uri)) from error
    except HFValidationError as error:
        raise StorageError(f"cannot {action} {uri}: {uri.repository} is not the name of a dataset") from error
    except HfHubHTTPError as error:
        raise explained(error, uri, action) from error
    except HTTP_ERROR as error:  # no connection, or a connection that broke
        what = f"cannot {action} {uri}: no answer from {endpoint()} ({type(error).__name__})"
        raise TransientError(what, "Check the network and HF_ENDPOINT.") from error


def explained(error: HfHubHTTPError, uri: HubUri, action: str = "read") -> StorageError | TransientError:
    """Return the error of a response."""
    status, start = error.response.status_code, f"cannot {action} {uri}"
    of_storage = status == 403 and not str(error.response.url).startswith(f"{endpoint()}/")
    if status in (408, 429) or status >= 500 or of_storage:  # a signed link of the storage expires
        hint = TOO_MANY if status == 429 else "Run the same command again later. It resumes."
        return TransientError(f"{start}: the hub answered {status}", hint, _wait_of(error.response.headers))
    what, hint = _refusal(error, uri, action)
    return StorageError(f"{start}: {what}", hint)


def _refusal(error: HfHubHTTPError, uri: HubUri, action: str) -> tuple[str, str]:
    """Return what a response of 4xx says, and a hint."""
    status, name = error.response.status_code, uri.repository
    message = error.response.headers.get("X-Error-Message") or ""
    says = f" ({message[:MAX_MESSAGE]})" if message else ""
    if isinstance(error, GatedRepoError):
        how = "then" if has_token() else "then log in with `hf auth login` or set HF_TOKEN, and"
        hint = f"Accept its terms at {endpoint()}/datasets/{name}, {how} run the same command again."
        return f"{name} is gated, and its owner has not granted access", hint
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {uri.revision}", _revisions(uri)
    if status == 401 and "Invalid credentials" in message:
        return f"{endpoint()} does not accept the token", "Check HF_TOKEN, or log in again with `hf auth login`."
    if status in (401, 404):
        hint = (
            "Check the name, and whether the account of your token can read it."
            if has_token()
            else "Check the name. A private dataset requires a token: log in with `hf auth login`, or set HF_TOKEN."
        )
        return f"there is no dataset {name} at {endpoint()}, or it is private", hint
    if status == 403:
        is_disabled = isinstance(error, DisabledRepoError)
        what = (
            f"the hub has disabled access to {name}" if is_disabled else f"the token has no right to {action} it{says}"
        )
        return what, "Check the rights of the token, HF_TOKEN, or ask the owner of the dataset."
    return f"{endpoint()} answered {status}{says}", "Check the name, and HF_ENDPOINT."


def _revisions(uri: HubUri) -> str:
    """Return a hint with the branches and tags of a repository."""
    try:
        refs = api().list_repo_refs(uri.repository, repo_type="dataset")
    except (HTTP_ERROR, OSError):
        return "Give a branch, a tag or a commit."
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    more = ", ..." if len(names) > MAX_NAMES else ""
    return f"Branches and tags: {', '.join(names[:MAX_NAMES])}{more}. A commit has 40 digits."


def _wait_of(headers: object) -> float | None:
    """Return the seconds of Retry-After, or those until the rate limit ends; None where there are none."""
    given = cast("dict[str, str]", headers)
    after = re.fullmatch(r"\s*(\d+)\s*", given.get("Retry-After") or "")
    limit = re.search(r";\s*r=0\s*;\s*t=(\d+)", given.get("RateLimit") or "")
    found = after or limit
    return None if found is None else min(float(found[1]) + 1, MAX_WAIT_S)
