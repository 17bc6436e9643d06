"""Every error that a user can meet, under one root.

An error says what was wrong, where, and what to do about it. Subclasses also inherit the matching standard
type, so `except ValueError` keeps working, and hold only their arguments, so they survive pickling across Ray.
`exit_code` is what the command line ends with: 2 usage, 3 data, 4 runtime.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class QTuneError(Exception):
    """Root of the package's errors. `hint` tells the user what to do."""

    exit_code = 4

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    @property
    def code(self) -> str:
        """A stable name for programs: `output_conflict` of OutputConflictError."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Error")).lower()


class SpecError(QTuneError, ValueError):
    """The job specification is wrong or contradicts itself or an earlier run."""

    exit_code = 2


class DataError(QTuneError, ValueError):
    """The input cannot be used: nothing found, unreadable, undetectable format, too many rejected rows."""

    exit_code = 3


class BadDatasetError(DataError):
    """An uploaded file is none that a job could read."""


class ChecksumMismatchError(DataError):
    """A file arrived with another content than its sender announced."""


class StorageError(QTuneError, OSError):
    """Bytes could not be read or written: missing path, no permission, full disk, failing endpoint."""

    exit_code = 4


class DamagedFileError(StorageError):
    """A file of an output has another content than this package writes."""


class DiskFullError(StorageError):
    """There is no room for a file."""


class ModelError(QTuneError, RuntimeError):
    """The model or its tokenizer could not be loaded, or is of a kind that cannot be scored."""

    exit_code = 4


class EngineError(QTuneError, RuntimeError):
    """The scoring engine is missing, of an unsupported version, or failed."""

    exit_code = 4


class ShardFailedError(EngineError):
    """A shard could not be worked through however often it was tried. Other shards are not concerned."""


class OutputConflictError(QTuneError, RuntimeError):
    """The output holds another job, or another driver is writing to it."""

    exit_code = 2


class SettingsError(QTuneError, ValueError):
    """A setting of the service is missing, wrong or unsafe."""

    exit_code = 2


class DatabaseError(QTuneError, RuntimeError):
    """The service's database cannot be reached, or has another schema than this version needs."""


class NotFoundError(QTuneError, KeyError):
    """There is no such job, sample, dataset, file or token."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not KeyError's, which shows the repr


class UnknownDatasetError(SpecError):
    """A job names a dataset that there is not."""


class DatasetInUseError(QTuneError, RuntimeError):
    """A job that waits or runs reads the dataset."""

    exit_code = 2


class TooLargeError(QTuneError, ValueError):
    """More bytes than the server's owner lets in."""

    exit_code = 2


class TooSlowError(QTuneError, TimeoutError):
    """Something took longer than the server waits."""

    __str__ = QTuneError.__str__  # not OSError's


class BusyError(QTuneError, RuntimeError):
    """The server does as much of this as it can; try again soon."""


class IllegalMoveError(QTuneError, RuntimeError):
    """A job cannot go from its status to the one asked for."""

    exit_code = 2


class IdempotencyConflictError(QTuneError, ValueError):
    """An Idempotency-Key was used before, for another request."""

    exit_code = 2


class LaunchError(QTuneError, RuntimeError):
    """A job could not be started, stopped or asked about."""


class LauncherAwayError(LaunchError):
    """The place where a job is to run does not answer; it may soon."""


class QueryError(QTuneError, ValueError):
    """A question about an output that cannot be answered: a wrong condition, an unknown column or sample."""

    exit_code = 2


class NotAllowedError(QTuneError, PermissionError):
    """The server's owner does not allow what was asked for."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not OSError's


class NotSignedInError(QTuneError, PermissionError):
    """There is no valid token."""

    exit_code = 2

    __str__ = QTuneError.__str__  # not OSError's


class UnreachableError(QTuneError, ConnectionError):
    """No server answers there, or its answer broke off."""

    __str__ = QTuneError.__str__  # not OSError's


class WaitTimeoutError(QTuneError, TimeoutError):
    """A job did not end in the time that was given; it goes on."""

    __str__ = QTuneError.__str__  # not OSError's


class ApiError(QTuneError, RuntimeError):
    """A server refused, or failed. What it names by an error of this module is raised as that one instead."""

    def __init__(
        self, message: str, hint: str = "", code: str = "", status: int = 0, fields: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message, hint)
        self.args = (message, hint, code, status, tuple(fields))
        self.status = status
        """HTTP's."""
        self.fields = tuple(fields)
        """(field, what is wrong with it) of the request."""
        self.exit_code = 2 if 400 <= status < 500 else 4

    @property
    def code(self) -> str:
        """The server's stable name of it."""
        return str(self.args[2])
