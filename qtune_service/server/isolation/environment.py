"""Environment variables of child processes: an allow-list, so that no secret of the server reaches a child by default.

The server's own variables (QTUNE_..., with the database's password), the token of a Ray cluster and the variables of
Kubernetes are on no list. An administrator adds names by QTUNE_CHILD_ENVIRONMENT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal

Purpose = Literal["driver", "preview", "question", "plain"]
"""driver: runs a job. preview: reads records and a tokenizer. question: reads outputs. plain: needs no data."""

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
MODELS = "HF_* HUGGING_FACE_HUB_TOKEN HUGGINGFACE_HUB_CACHE TRANSFORMERS_* TIKTOKEN_* SAFETENSORS_* "
JOB = (
    "CUDA_* CUBLAS_* CUDNN_* NVIDIA_* NCCL_* GLOO_* UCX_* ROCR_* HIP_* HSA_* VLLM_* TORCH_* TORCHINDUCTOR_* PYTORCH_* "
    "TRITON_* FLASHINFER_* XLA_* KMP_* NUMBA_* GRPC_* RAY_* "
    "CC CXX CPATH LIBRARY_PATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH QTUNE_LOG "
)
LISTS: Mapping[Purpose, str] = {
    "driver": BASE + NETWORK + STORAGE + MODELS + JOB,
    "preview": BASE + NETWORK + STORAGE + MODELS,
    "question": BASE + NETWORK + STORAGE,
    "plain": BASE,
}
"""Names that each purpose gets; `*` stands for the rest of a name."""
RAY_TOKENS = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
"""Of the server's cluster. A driver that starts a Ray of its own needs none: Ray makes one if RAY_AUTH_MODE=token."""


def child_environment(
    purpose: Purpose, more: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables that a child process gets. more: names that the administrator adds, `*` as in LISTS."""
    patterns = (re.escape(name).replace(r"\*", ".*") for name in (*LISTS[purpose].split(), *more))
    is_listed = re.compile("|".join(patterns)).fullmatch
    withheld = RAY_TOKENS - {*more} if not environ.get("RAY_ADDRESS") else frozenset[str]()
    return {name: value for name, value in environ.items() if is_listed(name) and name not in withheld}
