"""Limit the memory, processor time and files of a child process.

A threaded server must not run its own code between fork and exec (subprocess's preexec_fn). So a small program,
`python -m qtune_service.server.isolation LIMITS COMMAND...`, sets the limits on itself and calls exec. The kernel
enforces them.

Memory is limited by RLIMIT_DATA, private writable memory, because address space (RLIMIT_AS) also counts memory that
libraries reserve and never use.
Source: getrlimit(2), prctl(2)
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SMALL_LIBRARIES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "2",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Environment of a child with a memory limit. Libraries start a thread for each core, and the stacks count as memory.
So does the GiB that Arrow's own allocator reserves. The system's allocator is as fast where it keeps freed blocks."""
OOM_SCORE = "500"
"""Score of at most 1000: without memory on the machine or in the container, a child is killed before the server."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Limits of a child process."""

    memory_bytes: int
    cpu_s: int | None = None
    """Processor time of all threads. None: the child limits each request itself."""
    file_bytes: int = 1 << 20
    """Largest file that the child may write."""
    open_files: int = 512
    stack_bytes: int = 8 << 20
    parent: int | None = None
    """Id of the parent process, with which the child ends, or None. The kernel watches the thread that started the
    child, so this thread must wait for it."""

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another command within the limits."""
        return [sys.executable, "-m", __package__, json.dumps(asdict(self)), *command]

    @classmethod
    def parse(cls, text: str) -> ProcessLimits:
        """Parse the limits that `command` wrote."""
        return cls(**json.loads(text))

    def apply(self) -> None:
        """Limit this process and the program that it becomes. Keep limits that are already lower."""
        _lower(resource.RLIMIT_DATA, self.memory_bytes)
        _lower(resource.RLIMIT_FSIZE, self.file_bytes)
        _lower(resource.RLIMIT_NOFILE, self.open_files)
        _lower(resource.RLIMIT_STACK, self.stack_bytes)
        _lower(resource.RLIMIT_CORE, 0)
        if self.cpu_s is not None:
            _lower(resource.RLIMIT_CPU, self.cpu_s, spare=2)  # SIGXCPU comes before SIGKILL and shows the reason
        if sys.platform == "linux":
            _prctl(PR_SET_NO_NEW_PRIVS, 1)
            if self.parent is not None:
                _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != self.parent:
                    sys.exit("the parent process has ended")
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


def limit_cpu_from_now(seconds: int) -> None:
    """Allow this process some more seconds of processor time, after which SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def _lower(kind: int, value: int, spare: int = 0) -> None:
    """Lower the soft limit to a value, and the hard one to `spare` more."""
    _, hard = resource.getrlimit(kind)
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(kind, (min(value, highest), highest))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
