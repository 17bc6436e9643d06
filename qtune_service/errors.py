"""Define every error that a user can meet, under one root.

An error has a message (the problem and its place) and a hint (the remedy). Subclasses also inherit the matching
standard type, so `except ValueError` keeps working, and hold only their arguments, so they can be pickled for Ray.
`exit_code` is the exit code of the command line: 2 usage, 3 data, 4 runtime.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class QTuneError(Exception):
    """Root of the package's errors. `hint` names the remedy."""

    exit_code = 4

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    @property
    def code(self) -> str:
        """Return a stable name for programs, such as `output_conflict` of OutputConflictError."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Error")).lower()


class SpecError(QTuneError, ValueError):
    """The job specification is wrong, or contradicts itself or an earlier run."""

    exit_code = 2


class DataError(QTuneError, ValueError):
    """The input cannot be used: nothing found, unreadable, undetectable format, too many rejected rows."""

    exit_code = 3


class BadDatasetError(DataError):
    """A job cannot read an uploaded file."""


class ChecksumMismatchError(DataError):
    """A file arrived with other content than its sender announced."""


class StorageError(QTuneError, OSError):
    """Bytes could not be read or written: missing path, no permission, full disk, failing endpoint."""

    exit_code = 4


class DamagedFileError(StorageError):
    """A file of an output has content that this package does not write."""


class DiskFullError(StorageError):
    """The disk has no space for a file."""


class ModelError(QTuneError, RuntimeError):
    """The model or its tokenizer could not be loaded, or is of a kind that cannot be scored."""

    exit_code = 4


class EngineError(QTuneError, RuntimeError):
    """The scoring engine is missing, of an unsupported version, or failed."""

    exit_code = 4


class EngineMismatchError(EngineError):
    """A process has another engine than the one that scored the other shards of its job."""


class ShardFailedError(EngineError):
    """A shard failed in all its attempts. Other shards are not affected."""


class OutputConflictError(QTuneError, RuntimeError):
    """The output holds another job, or another driver is writing to it."""

    exit_code = 2


class SettingsError(QTuneError, ValueError):
    """A setting of the service is missing, wrong or unsafe."""

    exit_code = 2


class DatabaseError(QTuneError, RuntimeError):
    """The service's database cannot be reached, or has another schema than this version needs."""


class NotFoundError(QTuneError, KeyError):
    """The requested job, sample, dataset, file or token does not exist."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not KeyError's, which shows the repr


class UnknownDatasetError(SpecError):
    """The job references a dataset that does not exist."""


class DatasetInUseError(QTuneError, RuntimeError):
    """A queued or running job reads the dataset."""

    exit_code = 2


class TooLargeError(QTuneError, ValueError):
    """A request has more bytes than the administrator allows."""

    exit_code = 2


class TooSlowError(QTuneError, TimeoutError):
    """A request took longer than the server waits."""

    __str__ = QTuneError.__str__  # not OSError's


class BusyError(QTuneError, RuntimeError):
    """The server is at its limit for this kind of request. Try again soon."""


class IllegalMoveError(QTuneError, RuntimeError):
    """A job cannot change from its status to the requested one."""

    exit_code = 2


class IdempotencyConflictError(QTuneError, ValueError):
    """The Idempotency-Key was used for another request."""

    exit_code = 2


class LaunchError(QTuneError, RuntimeError):
    """A job could not be started, stopped or queried."""


class LauncherAwayError(LaunchError):
    """The cluster that runs a job does not answer. It may answer soon."""


class QueryError(QTuneError, ValueError):
    """A query of an output is invalid: a wrong condition, an unknown column or sample."""

    exit_code = 2


class NotAllowedError(QTuneError, PermissionError):
    """The administrator does not allow the request."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not OSError's


class NotSignedInError(QTuneError, PermissionError):
    """The request has no valid token."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not OSError's


class UnreachableError(QTuneError, ConnectionError):
    """No server answers at the address, or its answer was cut off."""

    __str__ = QTuneError.__str__  # not OSError's


class WaitTimeoutError(QTuneError, TimeoutError):
    """A job did not end within the given time. It continues."""

    __str__ = QTuneError.__str__  # not OSError's


class ApiError(QTuneError, RuntimeError):
    """A server refused a request or failed, with a code that is not of an error in this module."""

    def __init__(
        self, message: str, hint: str = "", code: str = "", status: int = 0, fields: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, code, status, tuple(fields))
        self.status = status
        """HTTP status."""
        self.fields = tuple(fields)
        """(field, problem) pairs of the request."""
        self.exit_code = 2 if 400 <= status < 500 else 4

    @property
    def code(self) -> str:
        """Return the server's code of the error."""
        return str(self.args[2])
