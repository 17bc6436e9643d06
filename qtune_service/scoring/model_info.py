"""What the job must know of a model before any actor loads it: its limits, and what it is, byte by byte.

The fingerprint makes a resumed job safe: scores of two different models must not meet in one output. Configuration
and tokenizer files are hashed whole; of a weight file its name, size, first and last MiB, since hashing 100 GB at
every start would cost more than it tells.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.errors import ModelError
from qtune_service.tokenize.model_source import model_folder

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as far as it can be known without its weights in memory."""

    architecture: str
    vocab_size: int
    max_model_len: int
    """Length limit of the job in tokens: the spec's, or the model's own."""
    fingerprint: str


def describe_model(spec: ModelSpec) -> ModelInfo:
    """Read the model's configuration. Raises ModelError that says what is missing."""
    config = _load_config(spec)
    text = _text_config(config)
    own_limit = getattr(text, "max_position_embeddings", None)
    limit = spec.max_model_len or own_limit
    if limit is None:
        raise ModelError(f"{spec.name} does not say how long its context is", "Give --max-model-len.")
    if own_limit is not None and limit > own_limit:
        raise ModelError(
            f"max_model_len {limit} is over the {own_limit} positions of {spec.name}", f"Use {own_limit} or less."
        )
    architectures = getattr(config, "architectures", None) or ["unknown"]
    return ModelInfo(architectures[0], int(text.vocab_size), int(limit), _fingerprint(spec, config))


def load_text_config(spec: ModelSpec) -> Any:
    """The model's own configuration, of its language part. Raises ModelError."""
    return _text_config(_load_config(spec))


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def local_folder(name: str) -> Path | None:
    """The model's folder, or None where the name is one of a hub. Raises ModelError where a folder holds no model."""
    folder = model_folder(name)
    if folder is None:
        return None
    if not (folder / "config.json").is_file():
        what = "is not a folder with a config.json" if folder.exists() else "does not exist"
        raise ModelError(f"model {name} {what}", "Give a folder saved by save_pretrained, or a model hub id.")
    return folder


def _load_config(spec: ModelSpec) -> Any:
    folder = local_folder(spec.name)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(folder or spec.name), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load the configuration of model {spec.name}: {str(error).splitlines()[0]}",
            "Give a local folder, or a hub id that this machine can reach (HF_TOKEN for gated models).",
        ) from error


def _fingerprint(spec: ModelSpec, config: Any) -> str:
    digest = hashlib.sha256()
    for name in filter(None, (spec.name, spec.tokenizer)):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            digest.update(f"{name}@{spec.revision or getattr(config, '_commit_hash', None)}".encode())
            continue
        for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            digest.update(file.name.encode())
            _hash_file(file, digest)
    return digest.hexdigest()


def _hash_file(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        if file.suffix not in _WEIGHTS or size <= 2 * _SAMPLE_BYTES:
            digest.update(stream.read())
            return
        digest.update(stream.read(_SAMPLE_BYTES))
        stream.seek(-_SAMPLE_BYTES, 2)
        digest.update(stream.read())
