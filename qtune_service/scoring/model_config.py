"""Read the facts about a model from its configuration, without loading weights.

Both engines check before loading: the model exists, it is a causal language model, its length limit, its dtype. Each
failure has its own message. A job reads the length limit and the fingerprint before any actor loads the model.

The fingerprint protects a job: scores of different models must not be mixed in one output. The driver computes it, and
each actor compares it with that of its own node (`check_model`). Of a local folder, configuration and tokenizer files
are hashed whole. Of a weight file the name, the size, and the first and last MiB are hashed, since hashing 100 GB at
every start would be too slow. A model of the hub is its commit, which the actors load, and a model on an object store
is the version of its files (storage/model_cache.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.errors import ModelError
from qtune_service.storage import model_cache
from qtune_service.tokenize.named_sources import model_folder, with_local_files

CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
# Rotary types whose max_position_embeddings already is the extended length.
_ROPE_EXTENDED = frozenset({"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Facts of a model's configuration for scoring."""

    name: str
    architectures: tuple[str, ...]
    dtype: str
    vocab_size: int
    max_model_len: int | None
    """Limit in tokens; None if neither the configuration nor the spec sets one."""
    config: Any
    """The transformers configuration."""

    @property
    def architecture(self) -> str:
        """Return the first architecture, which is loaded."""
        return self.architectures[0]


def read_checkpoint(model: ModelSpec) -> Checkpoint:
    """Read a model's configuration. Raises ModelError if it is missing, unreadable, or not of a causal model."""
    config = _load_config(model)
    text = config.get_text_config()
    architectures = tuple(config.architectures or ())
    if not architectures:
        raise ModelError(
            f"{model.name}: its config.json names no architecture.",
            'Add "architectures": ["...ForCausalLM"] to config.json.',
        )
    if not architectures[0].endswith(CAUSAL_SUFFIXES):
        raise unsupported_architecture(model.name, architectures[0], "any engine", "")
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported_architecture(model.name, architectures[0], "any engine", "This one is an encoder-decoder.")
    return Checkpoint(
        name=model.name,
        architectures=architectures,
        dtype=_dtype(model, text),
        vocab_size=int(text.vocab_size),
        max_model_len=_length_limit(model, text),
        config=config,
    )


def unsupported_architecture(model: str, architecture: str, engine: str, detail: str) -> ModelError:
    """Return the error for an unsupported architecture."""
    return ModelError(
        f"{model}: architecture {architecture} cannot be scored by {engine}.",
        f"Supported are decoder-only causal language models (...ForCausalLM). {detail}".rstrip(),
    )


def _load_config(model: ModelSpec) -> Any:
    from transformers import AutoConfig

    looks_local = model.name.startswith((".", "~", os.sep)) or Path(model.name).exists()
    path = Path(model.name).expanduser()
    if looks_local and not path.is_dir():
        raise ModelError(
            f"Model folder {model.name} does not exist.",
            "Give a folder with config.json and weights, or a model hub id.",
        )
    if looks_local and not (path / "config.json").is_file():
        raise ModelError(
            f"Model folder {model.name} has no config.json.", "Give the folder that holds config.json and the weights."
        )
    source = str(path) if looks_local else model.name
    try:
        return AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:  # no such repository, no network, bad JSON, unknown model type
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"The configuration of model {model.name} cannot be read: {reason}",
            "Check the name, the network and the revision. A model with its own code needs trust_remote_code.",
        ) from error


def _dtype(model: ModelSpec, text_config: Any) -> str:
    """Return the dtype. `auto` is the saved dtype, on both engines."""
    if model.dtype != "auto":
        return model.dtype
    saved = str(getattr(text_config, "dtype", None) or "float32").removeprefix("torch.")
    return saved if saved in ("float32", "bfloat16", "float16") else "bfloat16"


def _length_limit(model: ModelSpec, text_config: Any) -> int | None:
    limits = [int(value) for key in _LENGTH_KEYS if (value := getattr(text_config, key, None))]
    if not limits:
        return model.max_model_len
    rope = getattr(text_config, "rope_parameters", None) or {}
    kinds = [entry for entry in (rope, *rope.values()) if isinstance(entry, dict) and "rope_type" in entry]
    factors = [float(kind.get("factor") or 1) for kind in kinds if kind["rope_type"] not in _ROPE_EXTENDED]
    longest = int(max(limits) * (factors[-1] if factors else 1))
    if model.max_model_len is not None and model.max_model_len > longest:
        raise ModelError(
            f"max_model_len {model.max_model_len} is more than model {model.name} can read: {longest} tokens.",
            f"Set max_model_len to {longest} or less, or leave it out.",
        )
    is_longrope = any(
        kind["rope_type"] in ("su", "longrope") for kind in kinds
    )  # one set of factors per run: the short one
    original = getattr(text_config, "original_max_position_embeddings", None) if is_longrope else None
    return model.max_model_len or int(original or longest)


_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about a model that need no weights in memory."""

    architecture: str
    vocab_size: int
    max_model_len: int
    """Length limit of the job in tokens: the spec's, or the model's."""
    fingerprint: str
    revision: str | None = None
    """What actors load: the commit of a hub model, or the version of a model on an object store."""
    earlier_fingerprint: str = ""
    """Fingerprint by the rule of earlier versions, which took a branch of the hub for a version."""


def describe_model(spec: ModelSpec, version: str | None = None) -> ModelInfo:
    """Read the model's configuration. version: of a model on an object store, any if None. Raises ModelError."""
    if _is_object(spec.name):
        _, version = model_cache.fetch(spec.name, weights=False, version=version)
    local = with_local_files(spec, version=version)
    commit = None if local_folder(local.name) else _find_commit(local)
    config = _load_model_config(local.model_copy(update={"revision": commit or local.revision}))
    text = _text_config(config)
    own_limit = getattr(text, "max_position_embeddings", None)
    limit = spec.max_model_len or own_limit
    if limit is None:
        raise ModelError(f"{spec.name} does not state its context length", "Give --max-model-len.")
    if own_limit is not None and limit > own_limit:
        raise ModelError(
            f"max_model_len {limit} is over the {own_limit} positions of {spec.name}", f"Use {own_limit} or less."
        )
    architectures = getattr(config, "architectures", None) or ["unknown"]
    fingerprint = _fingerprint(spec, local, commit or spec.revision, version)
    earlier = _fingerprint(spec, local, spec.revision or getattr(config, "_commit_hash", None), version)
    return ModelInfo(architectures[0], int(text.vocab_size), int(limit), fingerprint, version or commit, earlier)


def planned_model(spec: ModelSpec, info: ModelInfo, *, weights: bool) -> ModelSpec:
    """Return the model that was described, on this node: local files, or a commit of the hub.

    Raise ModelError if it has changed, and StorageError.
    """
    if model_cache.is_remote(spec.name):
        return with_local_files(spec, weights=weights, version=info.revision)
    pinned = spec.model_copy(update={"revision": info.revision}) if info.revision else spec
    return with_local_files(pinned)


SAME_FILES = "Copy the same files to every node, or name a model of the hub or on an object store (s3://, gs://)."


def check_model(spec: ModelSpec, planned: ModelInfo, node: str) -> None:
    """Compare the model on this node with the planned one. Raise ModelError if their files differ."""
    own = describe_model(planned_model(spec, planned, weights=False)) if not _is_object(spec.name) else planned
    if own.fingerprint not in (planned.fingerprint, planned.earlier_fingerprint):
        raise ModelError(
            f"model {spec.name} on node {node} is not the one that this job was planned with: fingerprint "
            f"{own.fingerprint[:16]}, planned {planned.fingerprint[:16]}",
            SAME_FILES,
        )


def load_text_config(spec: ModelSpec) -> Any:
    """Return the configuration of the model's language part. Raises ModelError."""
    return _text_config(_load_model_config(with_local_files(spec)))


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def local_folder(name: str) -> Path | None:
    """Return the model's folder, or None for a hub id. Raises ModelError for a folder without a model."""
    folder = model_folder(name)
    if folder is None:
        return None
    if not (folder / "config.json").is_file():
        what = "is not a folder with a config.json" if folder.exists() else "does not exist"
        raise ModelError(f"model {name} {what}", "Give a folder saved by save_pretrained, or a model hub id.")
    return folder


def _find_commit(spec: ModelSpec) -> str | None:
    """Return the commit of a hub model, which the path of a cached file names. Raises ModelError."""
    from transformers.utils.hub import cached_file

    with _explained(spec):
        path = cached_file(spec.name, "config.json", revision=spec.revision)
    folder = Path(str(path)).parent
    return folder.name if folder.parent.name == "snapshots" else None


def _load_model_config(spec: ModelSpec) -> Any:
    folder = local_folder(spec.name)
    from transformers import AutoConfig

    with _explained(spec):
        return AutoConfig.from_pretrained(
            str(folder or spec.name), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )


@contextlib.contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load the configuration of model {spec.name}: {str(error).splitlines()[0]}",
            "Give a local folder, or a hub id that this machine can reach (HF_TOKEN for gated models).",
        ) from error


def _is_object(name: str) -> bool:
    return model_cache.is_remote(name) and not name.startswith("file://")


def _fingerprint(spec: ModelSpec, local: ModelSpec, commit: str | None, version: str | None) -> str:
    """Return the digest of a model's files. commit: of a hub model. version: of a model on an object store."""
    digest = hashlib.sha256()
    for given, name in ((spec.name, local.name), (spec.tokenizer, local.tokenizer)):
        if given is None or name is None:
            continue
        if version is not None and given == spec.name:
            digest.update(f"objects {version}".encode())
            continue
        folder = Path(name).expanduser()
        if not folder.is_dir():
            digest.update(f"{name}@{commit}".encode())
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
