"""Make a spec mean the same on every node: absolute paths, and the text of a template instead of its file."""

from __future__ import annotations

from pathlib import Path

from qtune_service.config import JobSpec
from qtune_service.tokenize.model_source import model_folder
from qtune_service.tokenize.named_sources import read_chat_template


def portable(spec: JobSpec) -> JobSpec:
    """The same job for processes with another working folder. Raises QTuneError where a template cannot be read."""
    template = spec.input.chat_template
    text = {"chat_template": read_chat_template(template)} if template is not None else {}
    names = {name: _absolute_if_there(value) for name in ("name", "tokenizer") if (value := getattr(spec.model, name))}
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update=text),
            "model": spec.model.model_copy(update=names),
            "output": spec.output.model_copy(update={"path": _absolute(spec.output.path)}),
            "from_scores": None if spec.from_scores is None else _absolute(spec.from_scores),
        }
    )


def _absolute(path: str) -> str:
    """A local path from the root; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_if_there(name: str) -> str:
    folder = model_folder(name)
    return str(folder.absolute()) if folder is not None and folder.exists() else name
