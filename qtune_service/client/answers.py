"""What a server answers when something is wrong, as errors of this package.

A problem's `code` is the name of an error of `errors.py`, so a caller catches the same NotFoundError here as in the
server; other codes become ApiError.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from qtune_service.errors import ApiError, NotSignedInError, QTuneError, UnreachableError
from qtune_service.wire import Problem

GIVE_A_TOKEN = "Give one: QTUNE_TOKEN, --token-file, or `qtune jobs login`."


def error_of(response: httpx.Response) -> QTuneError:
    """Of a response that failed, and whose body is read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return _foreign(response)
    message = problem.detail or problem.title
    if problem.errors:
        message += "".join(f"\n  {error.field}: {error.message}" for error in problem.errors)
    if problem.code == "not_signed_in" and "authorization" not in response.request.headers:
        return NotSignedInError(message, GIVE_A_TOKEN)
    if (kind := _named().get(problem.code)) is not None and not problem.errors:
        return kind(message, problem.hint)
    fields = [(error.field, error.message) for error in problem.errors]
    return ApiError(message, problem.hint, problem.code, response.status_code, fields)


def unreachable(error: httpx.TransportError, url: str) -> UnreachableError:
    """Of a request that got no answer."""
    reason = str(error) or type(error).__name__
    if isinstance(_root(error), ssl.SSLError):
        hint = "A certificate of your own is named by SSL_CERT_FILE; a server without TLS has an http:// URL."
    elif isinstance(error, httpx.ConnectError):
        hint = "Start one with `qtune serve`, or say where it is: --url, QTUNE_URL, or `qtune jobs login`."
    else:
        hint = "Try again; jobs go on meanwhile."
    return UnreachableError(f"no answer from {url}: {reason}", hint)


def _named() -> dict[str, type[QTuneError]]:
    return {kind("").code: kind for kind in _below(QTuneError) if kind is not ApiError}


def _below(kind: type[QTuneError]) -> Iterator[type[QTuneError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _below(sub)


def _foreign(response: httpx.Response) -> ApiError:
    """Of an answer that is not of the service: another server, a proxy, or storage behind a redirect."""
    place = response.url.copy_with(query=None, path=None)  # a presigned URL's query is a secret
    hint = "Is the URL that of a Q-Tuning server?"
    if response.has_redirect_location:
        hint = f"It sends elsewhere: {response.url.join(response.headers['location']).copy_with(query=None)}"
    status = response.status_code
    return ApiError(f"{place} answered {status} {response.reason_phrase}", hint, "unexpected_answer", status)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
