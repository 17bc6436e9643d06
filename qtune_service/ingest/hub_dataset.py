"""Resolve datasets of the Hugging Face hub in an input: pin revisions to commits, and find the files of a split.

    spec, commits = pin(spec)            # paths are now hf://datasets/ORG/NAME@<commit>/file
    spec, _ = pin(spec, commits)         # the same files later, also if the branch has moved

A repository without a path is resolved as the `datasets` library does: by `configs` in the YAML of its card (README.md,
and .huggingface.yaml), else by the names of its files. Without `--config` the default configuration is read, and
without `--split` the only split. Several are never mixed. A path or glob behind the repository's name selects files
itself, and `--split` then divides these by their names.

The card's `data_files` may name files of the repository only: a card must not make a server read other files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from qtune_service.config import InputSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.ingest.discovery import ENDING, SUPPORTED
from qtune_service.ingest.splits import METADATA, files_by_split
from qtune_service.storage import file_io
from qtune_service.storage.hub_uri import COMMIT, PREFIX, HubUri, is_hub

CARD, YAML = "README.md", ".huggingface.yaml"
SAVED = ("dataset_dict.json", "state.json")
"""Files that mark a folder of `save_to_disk`."""
MAX_CARD_BYTES = 16 << 20
MANY_PATHS = 20
"""Paths of one dataset above which it is listed once, in place of a request for each path."""
DEFAULT = "default"
SHOWN = 20
_WILDCARDS = "*?[]"
_KINDS = {"jsonl": "json", "ndjson": "json", "pq": "parquet", "tsv": "csv", "feather": "arrow"}
"""Endings that the `datasets` library reads by one loader."""
_TIES = ("parquet", "arrow", "jsonl", "json", "csv")
"""Endings in order of preference where a repository has equally many files of each."""


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration (subset) of a card."""

    name: str
    patterns: Mapping[str, Sequence[str]] | None
    """Split -> paths and globs. None: by the names of the files."""
    folder: str
    """`data_dir`: the folder of its files."""
    is_default: bool


def pin(spec: InputSpec, commits: Mapping[str, str] | None = None) -> tuple[InputSpec, dict[str, str]]:
    """Return the input with the files of datasets at fixed commits, and the commit of each dataset.

    commits: those of an earlier call, so that the same files are found again. Raise SpecError, DataError and
    StorageError.
    """
    known = dict(commits or {})
    if not all(map(COMMIT.fullmatch, known.values())):  # of a plan, which other users may have changed
        raise DataError("the plan of this output names a revision that is no commit", "Run it with another output.")
    roots = Counter(str(HubUri.parse(path).root) for path in spec.paths if is_hub(path))
    for root in (root for root, count in roots.items() if count > MANY_PATHS):
        _list(_at_commit(HubUri.parse(root), known))
    paths: list[str] = []
    for path in spec.paths:
        paths += _expand(path, spec, known) if is_hub(path) else [path]
    return spec.model_copy(update={"paths": tuple(paths), "config": None}), known


def pinned(spec: InputSpec) -> InputSpec:
    """Return the input with the files of datasets at their present commits."""
    return pin(spec)[0] if spec.reads_hub else spec


def _expand(path: str, spec: InputSpec, commits: dict[str, str]) -> list[str]:
    named = HubUri.parse(path)
    uri = _at_commit(named, commits)
    if not uri.path:
        return [str(uri.at(file)) for file in _files_of_repository(named, uri, spec)]
    if spec.config is not None:
        raise SpecError(
            f"config: {named} names files of a dataset, so it has no configuration",
            f"Remove the path behind {named.root}, or config.",
        )
    files = _files_of_path(named, uri)
    if files is None or spec.split is None:
        return [str(uri)]  # discovery lists it, and chooses the split of a folder
    return [str(uri.at(file)) for file in _of_split(named, _by_names(files, ""), spec.split)]


def _at_commit(named: HubUri, commits: dict[str, str]) -> HubUri:
    """Return the same path at its commit, which is found once for each dataset and revision."""
    root = str(named.root)
    if root not in commits:
        from qtune_service.storage.hub import find_commit

        commits[root] = file_io.retrying(root, "read", lambda: find_commit(named))
    return named.pinned(commits[root])


def _list(root: HubUri) -> list[str]:
    """Return all paths of a repository. Later requests for metadata of its files are answered from this listing."""
    from qtune_service.storage.hub import list_paths

    return file_io.retrying(str(root), "list", lambda: list_paths(root.root))


# --- paths


def _files_of_path(named: HubUri, uri: HubUri) -> list[str] | None:
    """Return the files of a path or glob, relative to the repository; None for a folder. Raise DataError for none."""
    text = str(uri)
    if file_io.stat(text) is not None:
        return [uri.path]
    if file_io.is_folder(text):
        return None
    if not file_io.is_glob(text):
        raise DataError(f"there is no {named.path} in {named.root}", _listing(uri.root))
    if found := file_io.glob(text):
        return [HubUri.parse(file).path for file in found]
    raise DataError(f"no file of {named.root} matches {named.path}", _listing(uri.root))


def _listing(root: HubUri) -> str:
    """Return a hint with the files and folders at the top of a repository."""
    folders = [f"{file_io.relative(name, str(root))}/" for name in file_io.list_folders(str(root))]
    names = [*folders, *(HubUri.parse(name).path for name in file_io.list_files(str(root), recursive=False))]
    return f"It holds {_shown(names)}." if names else "It is empty."


# --- configurations and splits


def _files_of_repository(named: HubUri, root: HubUri, spec: InputSpec) -> list[str]:
    """Return the files of a configuration's split, or the folder of `save_to_disk` that holds it."""
    every = _list(root)
    config = _choose(named, _configs(named, root, every), spec.config)
    if config.patterns is None:
        prefix = f"{config.folder}/" if config.folder else ""
        if any(f"{prefix}{name}" in every for name in SAVED):
            return [config.folder]  # discovery reads the folder by these files
        by_split = _by_names([file for file in every if file.startswith(prefix)], config.folder)
    else:
        by_split = {split: _matches(named, root, config, globs) for split, globs in config.patterns.items()}
    by_split = {split: files for split, files in by_split.items() if files}
    if not by_split:
        raise DataError(
            f"no data files in {named.root}{_of(config)}: it holds {_shown(every)}",
            f"{SUPPORTED} The hub may have converted it: {PREFIX}{named.repository}@refs/convert/parquet/CONFIG/SPLIT.",
        )
    return _of_split(named, by_split, spec.split, config)


def _choose(named: HubUri, configs: Sequence[Config], wanted: str | None) -> Config:
    """Return the wanted configuration, else the default one."""
    names = _shown([config.name for config in configs])
    if wanted is not None:
        if (found := next((config for config in configs if config.name == wanted), None)) is not None:
            return found
        raise DataError(f"{named.root} has no configuration {wanted}", f"Its configurations: {names}.")
    if len(configs) == 1:
        return configs[0]
    defaults = [config for config in configs if config.is_default or config.name == DEFAULT]
    if len(defaults) == 1:
        return defaults[0]
    what = "has several default configurations" if defaults else "has several configurations and no default"
    raise DataError(f"{named.root} {what}: {names}", f"Choose one with config (--config {configs[0].name}).")


def _of_split(
    named: HubUri, by_split: Mapping[str, list[str]], wanted: str | None, config: Config | None = None
) -> list[str]:
    """Return the files of the wanted split, else of the only one."""
    where, names = f"{named if config is None else named.root}{_of(config)}", _shown(by_split)
    if wanted is not None:
        if wanted in by_split:
            return by_split[wanted]
        raise DataError(f"{where} has no split {wanted}", f"Its splits: {names}.")
    if len(by_split) == 1:
        return next(iter(by_split.values()))
    raise DataError(
        f"{where} has several splits: {names}",
        f"Choose one with split (--split {next(iter(by_split))}), or name files: {named.root}/PATH.",
    )


def _of(config: Config | None) -> str:
    return "" if config is None or config.name == DEFAULT else f" (configuration {config.name})"


def _by_names(files: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Return the files of each split by their names below a folder. Only files of the most frequent kind are data."""
    prefix = f"{folder}/" if folder else ""
    by_split = files_by_split([file.removeprefix(prefix) for file in _readable(files)])
    if not by_split:
        return {}
    kind = _main_kind(next(iter(by_split.values())))
    chosen = {split: [f"{prefix}{file}" for file in of if _kind(file) == kind] for split, of in by_split.items()}
    return {split: files for split, files in chosen.items() if files}


def _readable(files: Iterable[str]) -> list[str]:
    return [file for file in files if ENDING.search(file)]


def _main_kind(files: Sequence[str]) -> str:
    """Return the loader of the most frequent ending, as the `datasets` library chooses it."""
    counts = Counter(_ending(file) for file in files)
    ties = {ending: len(_TIES) - index for index, ending in enumerate(_TIES)}
    best = max(counts, key=lambda ending: (counts[ending], ties.get(ending, 0), ending))
    return _KINDS.get(best, best)


def _ending(file: str) -> str:
    match = ENDING.search(file)
    return match.group(1).lower() if match else ""


def _kind(file: str) -> str:
    return _KINDS.get(_ending(file), _ending(file))


# --- the card


def _configs(named: HubUri, root: HubUri, every: Sequence[str]) -> list[Config]:
    """Return the configurations of a repository's card, or one of all files where it has none."""
    front = _front_matter(named, root, CARD) if CARD in every else {}
    if YAML in every:
        front |= _front_matter(named, root, YAML)
    listed = front.get("configs") or []
    if not isinstance(listed, list):
        raise _wrong_card(named, "`configs` is not a list")
    return [_config(named, entry) for entry in listed] or [Config(DEFAULT, None, "", is_default=True)]


def _front_matter(named: HubUri, root: HubUri, file: str) -> dict[str, Any]:
    """Return the YAML of a card, or of a file that is only YAML."""
    from huggingface_hub import DatasetCard

    text = file_io.read_range(str(root.at(file)), 0, MAX_CARD_BYTES).decode("utf-8-sig", "replace")
    try:
        card = DatasetCard(text if file == CARD else f"---\n{text}\n---\n")
    except Exception as error:  # PyYAML's errors are no ValueErrors
        raise _wrong_card(named, f"the YAML of {file} is not valid") from error
    return cast("dict[str, Any]", card.data.to_dict())  # type: ignore[no-untyped-call]


def _config(named: HubUri, entry: Any) -> Config:
    if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
        raise _wrong_card(named, "an entry of `configs` has no `config_name`")
    files = entry.get("data_files")
    patterns = None if files is None else _patterns(named, files)
    folder = str(entry.get("data_dir") or "").strip("/").removeprefix("./")
    for path in (folder, *(path for paths in (patterns or {}).values() for path in paths)):
        if "://" in path or path.startswith("/") or ".." in path.split("/"):
            raise _wrong_card(named, f"its `data_files` name {path[:200]}, which is not in the repository")
    return Config(entry["config_name"], patterns, folder, is_default=bool(entry.get("default")))


def _patterns(named: HubUri, files: Any) -> dict[str, list[str]]:
    """Return split -> paths and globs of `data_files`: a text, a list of texts, or a list of {split, path}."""
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    entries = files if isinstance(files, list) else [files]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": "train", "path": entries}]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        paths = [path] if isinstance(path, str) else path
        if split is None or not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
            raise _wrong_card(named, "`data_files` is not a path, a list of paths, or a list of {split, path}")
        if str(split) in found:
            raise _wrong_card(named, f"`data_files` has the split {split} twice")
        found[str(split)] = [one.removeprefix("./") for one in paths]
    return found


def _wrong_card(named: HubUri, what: str) -> DataError:
    return DataError(
        f"cannot use the card of {named.root}: {what}", f"Name files in place of the card: {named.root}/PATH."
    )


def _matches(named: HubUri, root: HubUri, config: Config, globs: Iterable[str]) -> list[str]:
    """Return the files of one split of a card. Files that are named without wildcards must exist."""
    from qtune_service.storage.hub import match_paths

    found: dict[str, None] = {}
    for glob in globs:
        at = root.at(f"{config.folder}/{glob}" if config.folder else glob)
        paths = file_io.retrying(str(at), "list", lambda at=at: match_paths(at))  # type: ignore[misc]
        if not any(sign in glob for sign in _WILDCARDS):
            if not paths:
                raise _wrong_card(named, f"its `data_files` name {at.path}, which is not there")
            found.update(dict.fromkeys(paths))
        else:
            found.update(dict.fromkeys(path for path in _readable(paths) if not _is_left_out(path, at.path)))
    kinds = sorted({_kind(path) for path in found} - {""})
    if len(kinds) > 1:
        raise DataError(
            f"{named.root}{_of(config)} mixes files of several kinds: {', '.join(kinds)}",
            f"Choose files of one kind: {named.root}/**/*.{kinds[-1]}.",
        )
    return list(found)


def _is_left_out(path: str, glob: str) -> bool:
    """Return whether a file is metadata, or is hidden and the glob does not name hidden files."""

    def hidden(text: str) -> int:
        *folders, name = text.split("/")
        return sum(part.startswith((".", "__")) for part in folders) + name.startswith(".")

    name = path.rpartition("/")[2]
    return (name in METADATA and name != glob.rpartition("/")[2]) or hidden(path) != hidden(glob)


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
