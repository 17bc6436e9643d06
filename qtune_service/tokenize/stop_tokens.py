"""Find the tokens at which generation with a model stops.

They are the `eos_token_id` of generation_config.json and config.json (a number or a list, also of a nested text
config) and the tokenizer's own eos token. Only JSON files are read, from the model's folder or, for a hub id, from the
hub's cache, and generation_config.json also from the hub. A missing or unreadable file adds nothing: many models have
no generation_config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qtune_service.config import ModelSpec
from qtune_service.tokenize.named_sources import model_folder

_FILES = ("generation_config.json", "config.json")


def stop_token_ids(model: ModelSpec, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids of a model's stop tokens that its tokenizer has, in ascending order."""
    found = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    for name in _FILES:
        config = _read_json(model, name)
        for part in (config, config.get("text_config"), config.get("llm_config")):
            ids = part.get("eos_token_id") if isinstance(part, dict) else None
            found.update(one for one in (ids if isinstance(ids, list) else [ids]) if _is_id(one))
    return tuple(sorted(one for one in found if 0 <= one < len(tokenizer)))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_json(model: ModelSpec, name: str) -> dict[str, Any]:
    """Return a JSON file of a model; empty if it is missing or no object."""
    folder = model_folder(model.name)
    path = _file_of_hub(model, name) if folder is None else folder / name
    try:
        value = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _file_of_hub(model: ModelSpec, name: str) -> Path | None:
    """Return the local copy of a file of the hub, or None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import cached_file

    try:
        path: Any = try_to_load_from_cache(model.name, name, revision=model.revision)
        if path is None and name == _FILES[0]:  # loading a model fetches config.json, but not this file
            path = cached_file(
                model.name,
                name,
                revision=model.revision,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
    except (OSError, ValueError):  # no such repository: its tokenizer is another's
        return None
    return Path(path) if isinstance(path, str) else None
