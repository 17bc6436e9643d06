"""Fetch models from object stores into a folder of this node, once for all processes of the node.

A model is the files in the folder of its URI that loading needs (`_needed`). Its version is a digest of their names,
sizes and ETags. Each version has a folder of its own, which appears by a rename when it is complete. Processes of a
node that need the same version wait for one of them, which holds a file lock. If it dies, the next one keeps its
complete files and fetches the others. Configuration and tokenizer have a folder of their own, so that a driver needs no
weights.

Files are fetched in parts of 64 MiB, 16 at a time. Their sizes and ETags are compared again at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qtune_service.errors import ModelError, StorageError
from qtune_service.storage import file_io
from qtune_service.storage.file_io import Entry
from qtune_service.storage.filesystems import display

CACHE_VARIABLE = "QTUNE_MODEL_CACHE"
PART_BYTES, THREADS = 64 << 20, 16
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".npz")
SUBFOLDERS = ("additional_chat_templates", "chat_templates")
"""Folders below a model that tokenizers read. Others hold copies of the weights in other formats."""
SPARE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A version of a model on an object store."""

    uri: str
    files: tuple[tuple[str, Entry], ...]
    """(path in the folder, metadata) of the needed files, sorted."""

    @property
    def version(self) -> str:
        """Return the digest of names, sizes and ETags."""
        lines = [f"{name}\0{entry.size_bytes}\0{entry.version}\n" for name, entry in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def without_weights(self) -> RemoteModel:
        """Return configuration and tokenizer."""
        return RemoteModel(self.uri, tuple(file for file in self.files if not file[0].endswith(WEIGHTS)))


def is_remote(name: str) -> bool:
    """Return whether a model is on an object store."""
    return "://" in name


def find_model(uri: str) -> RemoteModel:
    """List a model. Raise ModelError where there is none, and StorageError."""
    if uri[:5].lower() == "hf://":
        name = uri[5:].removeprefix("models/")
        raise ModelError(f"model {uri}: a model of the hub is named by its id", f"Give {name}.")
    folders = [uri, *(file_io.join(uri, name) for name in SUBFOLDERS)]
    uris = [found for folder in folders for found in file_io.list_files(folder, recursive=False)]
    names = _needed({file_io.relative(found, uri): found for found in uris})
    if "config.json" not in names:
        raise ModelError(
            f"model {display(uri)} has no config.json",
            "Give the URI of a folder saved by save_pretrained, or a model hub id.",
        )
    with ThreadPoolExecutor(THREADS) as pool:
        entries = list(pool.map(file_io.stat, names.values()))
    files = [(name, entry) for name, entry in zip(names, entries, strict=True) if entry is not None]
    return RemoteModel(uri, tuple(sorted(files)))


def _needed(names: dict[str, str]) -> dict[str, str]:
    """Leave out weights in another format than the one that is loaded, as vLLM and transformers do."""
    is_safe = any(name.endswith(".safetensors") for name in names)
    has_own = "model.safetensors" in names or "model.safetensors.index.json" in names

    def is_needed(name: str) -> bool:
        if name.rpartition("/")[2].startswith("."):
            return False
        if is_safe and name.endswith(WEIGHTS) and not name.endswith(".safetensors"):
            return False
        return not (has_own and name.startswith("consolidated"))

    return {name: uri for name, uri in names.items() if is_needed(name)}


def cache_root() -> Path:
    """Return the folder of fetched models: QTUNE_MODEL_CACHE, or `qtune-models` in HF_HOME."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "qtune-models"


def fetch(uri: str, *, weights: bool, version: str | None = None) -> tuple[Path, str]:
    """Return a local folder with a model, without weights if these are not needed, and its version.

    version: the one that is needed, any if None. Raise ModelError if the model has another one now, and StorageError.
    """
    root = cache_root()
    if version is not None and (known := _known(root, uri, version, weights=weights)):
        return known, version
    found = find_model(uri)
    if version not in (None, found.version):
        raise ModelError(
            f"model {display(uri)} has changed since this job was planned",
            "Restore its files, or start the job from scratch with --overwrite.",
        )
    if known := _known(root, uri, found.version, weights=weights):
        return known, found.version
    target = root / _folder_name(uri, found.version, weights=weights)
    with _storage_errors(root), _locked(root / f"{target.name}.lock"):
        if not target.is_dir():
            _download(found if weights else found.without_weights(), target)
    return target, found.version


def _known(root: Path, uri: str, version: str, *, weights: bool) -> Path | None:
    """Return the complete folder of a version, if this node has it. One with weights serves both needs."""
    kinds = (True,) if weights else (True, False)
    folders = (root / _folder_name(uri, version, weights=kind) for kind in kinds)
    return next((folder for folder in folders if folder.is_dir()), None)


def _folder_name(uri: str, version: str, *, weights: bool) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in display(uri).rstrip("/").rpartition("/")[2])[:80]
    place = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return f"{name or 'model'}-{place}-{version[:24]}{'' if weights else '-config'}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file. The system frees it if this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write to the model cache {root}: {error.strerror or error}",
            f"Set {CACHE_VARIABLE} to a folder with space for the model.",
        ) from error


def _download(model: RemoteModel, target: Path) -> None:
    """Fetch files into a temporary folder, and rename it. Complete files of an earlier attempt are kept."""
    part = target.with_name(f"{target.name}.part")
    part.mkdir(exist_ok=True)
    todo = [(name, entry) for name, entry in model.files if not (part / name).exists()]
    _check_space(part, sum(entry.size_bytes for _, entry in todo), model.uri)
    for name, entry in todo:
        _download_file(entry, part / name)
    with ThreadPoolExecutor(THREADS) as pool:
        now = list(pool.map(file_io.stat, [entry.uri for _, entry in model.files]))
    changed = [name for (name, entry), found in zip(model.files, now, strict=True) if found != entry]
    if changed:
        shutil.rmtree(part)
        raise StorageError(
            f"{display(model.uri)}: {changed[0]} changed while it was fetched", "Run the same command again."
        )
    part.rename(target)


def _download_file(entry: Entry, path: Path) -> None:
    """Fetch one file in parallel parts. It gets its name when it is complete and has its size."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    with file_io.open_ranges(entry.uri) as read, unfinished.open("wb") as file:

        def copy(start: int) -> int:
            body = memoryview(read(start, min(start + PART_BYTES, entry.size_bytes)))
            done = 0
            while done < len(body):
                done += os.pwrite(file.fileno(), body[done:], start + done)
            return done

        with ThreadPoolExecutor(THREADS) as pool:
            size = sum(pool.map(copy, range(0, entry.size_bytes, PART_BYTES)))
        os.fsync(file.fileno())
    if size != entry.size_bytes:
        raise StorageError(
            f"{display(entry.uri)} gave {size:,} of {entry.size_bytes:,} bytes", "Run the same command again."
        )
    unfinished.rename(path)


def _check_space(folder: Path, num_bytes: int, uri: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES * bool(num_bytes > SPARE_BYTES):
        raise StorageError(
            f"{display(uri)} needs {num_bytes / 1e9:.1f} GB in {folder.parent}, which has {free / 1e9:.1f} GB",
            f"Set {CACHE_VARIABLE} to a folder on a larger disk.",
        )
