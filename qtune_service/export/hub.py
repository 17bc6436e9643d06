"""A folder that can be pushed to the hub as a dataset repository: Parquet files, and a dataset card.

Machines read the card's front matter: the files of the split, the columns with their types as `datasets` names them,
and the number of rows. The body says where the data comes from and what was dropped. Paths of this machine are not
published: inputs and local models appear by their last name only, and datasets of the hub by their name there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from qtune_service.errors import DataError
from qtune_service.export.writers import Export, Options, pruned_tables
from qtune_service.ingest.schema import is_json_type, with_json_type
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.data import QUADRANTS
from qtune_service.report.text import count, number, percent
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile, display
from qtune_service.storage.hub_uri import HubUri, is_hub

_BY_ALIAS = {
    "halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32", "date64[ms]": "date64",
}  # fmt: skip
SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
TAGS = ("q-tuning", "data-pruning", "supervised-fine-tuning", "qtune-service")
MAX_SOURCES = 5
USER_NAME = "USER/NAME"
"""Placeholder for the name of a repository that is not known."""
PAPER = "https://arxiv.org/abs/2509.23873"


def named_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return `features` of a card. Raise DataError for a type that `datasets` does not have."""
    return [_named(field, field.name) for field in schema]


def _named(field: pa.Field[Any], where: str) -> dict[str, Any]:
    return {"name": field.name, **_feature(field.type, where)}


def _feature(of: pa.DataType, where: str) -> dict[str, Any]:
    if pa.types.is_struct(of):
        return {"struct": [_named(child, f"{where}.{child.name}") for child in of.fields]}
    if pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of):
        item = _feature(of.value_type, where)
        # A card names the type of a list of a plain type, and the fields of a list of structs.
        short = item.get("dtype") or item.get("struct") or item
        length = {"length": of.list_size} if pa.types.is_fixed_size_list(of) else {}
        return {"large_list" if pa.types.is_large_list(of) else "list": short, **length}
    return {"dtype": _dtype(of, where)}


def _dtype(of: pa.DataType, where: str) -> str:
    if is_json_type(of):
        return "json"
    if pa.types.is_dictionary(of):
        return _dtype(of.value_type, where)
    if pa.types.is_decimal(of):
        return f"decimal{of.bit_width}({of.precision}, {of.scale})"
    if pa.types.is_nested(of) or isinstance(of, pa.BaseExtensionType):
        raise DataError(
            f"column {where} is of type {of}, which datasets cannot read",
            "Export with --to parquet or --to jsonl, or drop the column before scoring.",
        )
    return _BY_ALIAS.get(str(of), str(of))


def render_card(finished: FinishedOutput, about: Mapping[str, Any], options: Options) -> str:
    """Return README.md of a repository with the data in data/train-*. about: `dataset_info`."""
    body = _body(finished, about, options.repository or USER_NAME)
    return f"---\n{front_matter(about, options.license)}\n---\n\n" + "\n".join(body) + "\n"


def front_matter(about: Mapping[str, Any], license_name: str | None) -> str:
    """Return the YAML of a card. about: `dataset_info`."""
    from huggingface_hub import DatasetCardData

    num_rows = about["splits"][0]["num_examples"]
    card = DatasetCardData(
        license=license_name or "unknown",
        task_categories=["text-generation"],
        tags=list(TAGS),
        size_categories=[next((name for limit, name in SIZES if num_rows < limit), "n>1T")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        dataset_info=about,
    )
    return card.to_yaml()


def _body(finished: FinishedOutput, about: Mapping[str, Any], repository: str) -> Iterator[str]:
    spec, counts = finished.spec, finished.manifest["counts"]
    sources = _sources(spec.input.paths)
    yield f"# {sources.replace('`', '')}, pruned for fine-tuning\n"
    yield (
        f"{count(counts['kept'])} of {count(counts['scored'])} samples ({percent(counts['kept'], counts['scored'])}) "
        f"of {sources}, selected by qtune-service {finished.manifest['version']} for the model that scored them, "
        f"`{_model(spec.model.name)}`.\n"
    )
    yield from _method(finished)
    yield from _dropped(finished)
    yield from _columns(about)
    yield from _training(finished, repository)


def _method(finished: FinishedOutput) -> Iterator[str]:
    prune, manifest = finished.prune, finished.manifest
    tokens, engine = manifest["tokens"], manifest["engine"]
    yield "## How it was made\n"
    if prune.strategy == "q_tuning":
        yield (
            f"Samples are divided into four quadrants by perplexity and predictive entropy under the model "
            f"([Q-Tuning]({PAPER})). Two quadrants are dropped. In a third, the tokens with the highest perplexity, "
            "smoothed over their neighbours, are removed from the loss.\n"
        )
    else:
        yield f"Samples were selected by the strategy `{prune.strategy}`, not by quadrants.\n"
    yield "| | |\n|---|---|"
    target = (
        f"{prune.sample_keep_ratio:.2%} of the samples, {prune.token_keep_ratio:.0%} of the tokens of pruned samples"
    )
    yield f"| target | {target} |"
    yield f"| scored by | {engine['name']} {engine['version']}, {engine['dtype']} |"
    yield f"| trained tokens of kept samples | {count(tokens['before'])} -> {count(tokens['after'])} |"
    for name, value in manifest["thresholds"].items():
        yield f"| {name} | {number(float(value))} |"
    yield ""


def _dropped(finished: FinishedOutput) -> Iterator[str]:
    counts = finished.manifest["counts"]
    yield "## What was dropped, and why\n"
    yield "| quadrant | scores | samples | decision |\n|---|---|---:|---|"
    by_quadrant = finished.prune.strategy == "q_tuning"
    for q in QUADRANTS:
        decision = q.decision if by_quadrant else "by the strategy"
        yield f"| {q.label} {q.name} | {q.place} | {count(counts[q.label])} | {decision} |"
    yield ""
    reasons = ", ".join(f"{name} {count(value)}" for name, value in finished.manifest["rejected_reasons"].items())
    yield (
        f"{count(counts['read'])} records were read. {count(counts['rejected'])} were rejected"
        f"{f' ({reasons})' if reasons else ''}, and {count(counts['pruned'])} were dropped.\n"
    )


def _columns(about: Mapping[str, Any]) -> Iterator[str]:
    names = [feature["name"] for feature in about["features"]]
    yield "## Columns\n"
    yield (
        f"{', '.join(f'`{name}`' for name in names)}. `input_ids` are whole samples in the model's chat template. "
        "`labels` are the same, with -100 where the loss ignores a token. `loss_mask` and `assistant_masks` are 1 "
        "where the loss counts a token. `qtune` holds each sample's perplexity, entropy (nats), quadrant and number "
        "of removed tokens.\n"
    )


def _training(finished: FinishedOutput, repository: str) -> Iterator[str]:
    model = _model(finished.spec.model.name)
    yield "## How to train on it\n"
    yield "The tokens are from the model's own tokenizer: train that model, or one with the same tokenizer.\n"
    yield "```python"
    yield f'data = load_dataset("{repository}", split="train")'
    yield f'SFTTrainer("{model}", args=SFTConfig(max_length=None), train_dataset=data).train()'
    yield "```"
    if finished.prune.strategy == "infobatch":
        yield "\nInfoBatch weights samples: multiply the loss of each sample by `qtune.loss_weight`."


def _sources(paths: Sequence[str]) -> str:
    shown = [f"`{_source(path).replace('`', '')}`" for path in paths[:MAX_SOURCES]]
    return ", ".join(shown) + (f" and {len(paths) - MAX_SOURCES} more" if len(paths) > MAX_SOURCES else "")


def _source(path: str) -> str:
    """Return the name of a dataset of the hub, and the last name of another path."""
    return HubUri.parse(path).repository if is_hub(path) else _last(path)


def _model(name: str) -> str:
    """Return a hub id unchanged, and the last name of a local folder."""
    is_local = name.startswith(("/", ".", "~")) or "://" in name or name.count("/") > 1
    return _last(name) if is_local else name


def _last(path: str) -> str:
    return display(path).rstrip("/").rpartition("/")[2]


def check_repository(export: Export) -> None:
    """Raise DataError if a column has a type that `datasets` does not have."""
    named_features(_schema(export))


def _schema(export: Export) -> pa.Schema:
    finished = export.finished
    with finished.folder.open_part(finished.path("pruned", next(iter(finished.pruned_shards)))) as file:
        return pa.schema(map(with_json_type, file.schema_arrow))


def write_repository(export: Export) -> Iterator[WrittenFile]:
    """Write data/train-00000-of-0000N.parquet, ..., README.md."""
    names = _names(export)
    size = 0

    def write(folder: str, tables: Iterable[pa.Table]) -> Iterator[WrittenFile]:
        for name, table in zip(names, tables, strict=True):
            yield file_io.write_table(file_io.join(folder, "data", name), table)

    for file in export.write(write, pruned_tables(export.finished)):
        size += file.size_bytes
        yield file
    about: dict[str, Any] = {
        "features": named_features(_schema(export)),
        "splits": [{"name": "train", "num_bytes": export.num_bytes, "num_examples": export.num_rows}],
        "download_size": size,
        "dataset_size": export.num_bytes,
    }
    card = render_card(export.finished, about, export.options)
    yield file_io.write_bytes(file_io.join(export.folder, "README.md"), card.encode())


def _names(export: Export) -> list[str]:
    shards = export.finished.pruned_shards
    wanted = export.options.rows_per_file
    total = len(shards) if wanted is None else -(-sum(shards.values()) // wanted)
    return [f"train-{number:05}-of-{total:05}.parquet" for number in range(total)]
