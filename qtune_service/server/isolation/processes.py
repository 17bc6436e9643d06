"""Run one command with bounded time and output, and select the environment variables of child processes.

Variables are on allow-lists, so that no secret of the server reaches a child by default. The server's own variables
(QTUNE_..., with the database's password), the token of a Ray cluster and the variables of Kubernetes are on no list.
The administrator adds names with QTUNE_CHILD_ENVIRONMENT.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

Purpose = Literal["driver", "preview", "question", "plain"]
"""driver: run a job. preview: read records and a tokenizer. question: read outputs. plain: use no data."""

BASE = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_* TZ TMPDIR TERM COLUMNS XDG_* "
    "PYTHONPATH PYTHONHOME PYTHONHASHSEED PYTHONUTF8 PYTHONIOENCODING PYTHONDONTWRITEBYTECODE PYTHONWARNINGS "
    "VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD MALLOC_* GLIBC_TUNABLES "
    "NO_COLOR DO_NOT_TRACK ARROW_* "
    "OMP_* OPENBLAS_NUM_THREADS MKL_* NUMEXPR_NUM_THREADS RAYON_NUM_THREADS TOKENIZERS_PARALLELISM "
)
NETWORK = (
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE "
)
STORAGE = (
    "AWS_* GOOGLE_* GCS_* GCLOUD_* CLOUDSDK_* STORAGE_EMULATOR_HOST AZURE_* FSSPEC_* "
    "HADOOP_* HDFS_* CLASSPATH JAVA_HOME KRB5* "
)
MODELS = (
    "HF_* HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_CACHE TRANSFORMERS_* TIKTOKEN_* SAFETENSORS_* "
    "QTUNE_MODEL_CACHE RUNAI_STREAMER_* "
)
JOB = (
    "CUDA_* CUBLAS_* CUDNN_* NVIDIA_* NCCL_* GLOO_* UCX_* ROCR_* HIP_* HSA_* VLLM_* TORCH_* TORCHINDUCTOR_* PYTORCH_* "
    "TRITON_* FLASHINFER_* XLA_* KMP_* NUMBA_* GRPC_* RAY_* "
    "CC CXX CPATH LIBRARY_PATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH QTUNE_LOG QTUNE_LOCK "
)
LISTS: Mapping[Purpose, str] = {
    "driver": BASE + NETWORK + STORAGE + MODELS + JOB,
    "preview": BASE + NETWORK + STORAGE + MODELS,
    "question": BASE + NETWORK + STORAGE,
    "plain": BASE,
}
"""Names of variables for each purpose. `*` matches the rest of a name."""
RAY_TOKENS = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
"""Variables with the token of the server's cluster. A driver that starts its own Ray needs none, because Ray creates a
token if RAY_AUTH_MODE=token."""
BLOCK_BYTES = 1 << 16
TAIL_BYTES = 1 << 16
"""Length of the kept end of standard error."""


def child_environment(
    purpose: Purpose, more: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of a child process. more: further names from the administrator, `*` as in LISTS."""
    patterns = (re.escape(name).replace(r"\*", ".*") for name in (*LISTS[purpose].split(), *more))
    is_listed = re.compile("|".join(patterns)).fullmatch
    withheld = RAY_TOKENS - {*more} if not environ.get("RAY_ADDRESS") else frozenset[str]()
    return {name: value for name, value in environ.items() if is_listed(name) and name not in withheld}


class OutputTooLargeError(Exception):
    """The command was killed because it printed more than max_output_bytes."""


class TimeOverError(Exception):
    """The command was killed because it ran longer than within_s."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a command."""

    returncode: int
    """Exit status, or the negative number of the signal that ended the command."""
    stdout: bytes
    stderr: bytes
    """The last TAIL_BYTES of standard error."""


def run_limited(
    command: Sequence[str],
    *,
    stdin: bytes,
    environment: Mapping[str, str],
    within_s: float,
    max_output_bytes: int,
) -> Finished:
    """Run a command, and kill all processes of its session at the end.

    Raise OutputTooLargeError and TimeOverError.
    """
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = _exchange(process, stdin, time.monotonic() + within_s, max_output_bytes)
        finally:
            kill_session(process)
        return Finished(process.returncode, stdout, stderr)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the session that `process` leads, and wait for the process."""
    if process.returncode is None:  # not waited for, so no other process can have its id
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _exchange(
    process: subprocess.Popen[bytes], stdin: bytes, deadline_s: float, max_output_bytes: int
) -> tuple[bytes, bytes]:
    """Write the input and read the output until the process closes it."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr, left = bytearray(), bytearray(), memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            events = selector.select(max(deadline_s - time.monotonic(), 0))
            if not events:
                raise TimeOverError
            for key, _ in events:
                if key.fileobj is process.stdin:
                    left = _write(process.stdin, left)
                    is_done = not left
                else:
                    block = os.read(key.fd, BLOCK_BYTES)
                    is_done = not block
                    if key.fileobj is process.stdout:
                        stdout += block
                    else:
                        stderr = (stderr + block)[-TAIL_BYTES:]
                if is_done:
                    selector.unregister(key.fileobj)
                if len(stdout) > max_output_bytes:
                    raise OutputTooLargeError
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
    try:
        process.wait(max(deadline_s - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise TimeOverError from None
    return bytes(stdout), bytes(stderr)


def _write(stdin: IO[bytes], left: memoryview) -> memoryview:
    """Write to the pipe without blocking, close it after the last byte or when the command has closed its end.

    Return the rest of the input.
    """
    try:
        left = left[os.write(stdin.fileno(), left) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        left = left[:0]
    if not left:
        stdin.close()
    return left
