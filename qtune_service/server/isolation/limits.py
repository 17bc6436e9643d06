"""What a child process may take of the machine. The child applies the limits to itself and then becomes its program.

A threaded server must run no code of its own between fork and exec (subprocess's preexec_fn), so a small program comes
first: `python -m qtune_service.server.isolation LIMITS COMMAND...` sets the limits and calls exec. The kernel
keeps them.

Memory is bounded as RLIMIT_DATA, private writable memory, because address space (RLIMIT_AS) also counts what libraries
reserve and never touch.
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
"""Environment of a child with a limit of memory: stacks of threads, of which there would be as many as the machine has
cores, count as memory, and so does the GiB that Arrow's own allocator reserves. The system's allocator is as fast where
it does not give each block back at once."""
OOM_SCORE = "500"
"""Of 1000: where the machine or its container runs out of memory, a child ends before the server does."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Limits of a child process."""

    memory_bytes: int
    cpu_s: int | None = None
    """Processor time of all its threads; None where the child limits each request by itself."""
    file_bytes: int = 1 << 20
    """Size of the largest file that it may write."""
    open_files: int = 512
    stack_bytes: int = 8 << 20
    parent: int | None = None
    """The process whose end is also the child's, if the thread that starts the child waits for it. (The kernel watches
    the thread, not the process.)"""

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another one within the limits."""
        return [sys.executable, "-m", __package__, json.dumps(asdict(self)), *command]

    @classmethod
    def parse(cls, text: str) -> ProcessLimits:
        """Read what `command` wrote."""
        return cls(**json.loads(text))

    def apply(self) -> None:
        """Limit this process, and whatever it becomes. A limit that was lower before stays lower."""
        _lower(resource.RLIMIT_DATA, self.memory_bytes)
        _lower(resource.RLIMIT_FSIZE, self.file_bytes)
        _lower(resource.RLIMIT_NOFILE, self.open_files)
        _lower(resource.RLIMIT_STACK, self.stack_bytes)
        _lower(resource.RLIMIT_CORE, 0)
        if self.cpu_s is not None:
            _lower(resource.RLIMIT_CPU, self.cpu_s, spare=2)  # so that SIGXCPU comes before SIGKILL, and says why
        if sys.platform == "linux":
            _prctl(PR_SET_NO_NEW_PRIVS, 1)
            if self.parent is not None:
                _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != self.parent:
                    sys.exit("the parent process has ended")
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


def limit_cpu_from_now(seconds: int) -> None:
    """Let this process use so many more seconds of processor time; beyond, SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def _lower(kind: int, value: int, spare: int = 0) -> None:
    """Set the soft limit to a value, and the hard one to `spare` more."""
    _, hard = resource.getrlimit(kind)
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(kind, (min(value, highest), highest))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
