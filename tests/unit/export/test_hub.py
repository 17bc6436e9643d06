"""A repository for the hub: a card that machines and people can read, and data that load by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from datasets import Features, load_dataset

from qtune_service.errors import DataError
from qtune_service.export.hub import front_matter, named_features
from qtune_service.export.run import export
from qtune_service.export.writers import Options
from qtune_service.output.reader import FinishedOutput
from tests.jobs import rows


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter, and body."""
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture(scope="module")
def repository(finished: FinishedOutput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder ready to be pushed."""
    folder = tmp_path_factory.mktemp("repository")
    export(finished.root, "hub", str(folder), Options(rows_per_file=25))
    return folder


def test_files_are_numbered_of_how_many(repository: Path, finished: FinishedOutput) -> None:
    """As the hub names them, so that a missing one is seen."""
    total = -(-finished.manifest["counts"]["kept"] // 25)
    names = sorted(path.name for path in (repository / "data").iterdir())
    assert names == [f"train-{i:05}-of-{total:05}.parquet" for i in range(total)]


def test_the_folder_loads_and_the_card_knows_its_types(repository: Path, out: Path, tmp_path: Path) -> None:
    """`load_dataset(DIR)` finds the split by the card; its features are the card's, its rows those of pruned/."""
    front, _ = card(repository)
    data = load_dataset(str(repository), split="train", cache_dir=str(tmp_path))
    declared = Features._from_yaml_list(front["dataset_info"]["features"])
    assert data.features == declared
    assert data.to_list() == rows(out / "pruned")
    (split,) = front["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", len(data))


def test_front_matter_is_what_the_hub_asks_for(repository: Path, finished: FinishedOutput) -> None:
    """Configs with their files, a size category, tags, and no licence that nobody gave."""
    front, _ = card(repository)
    assert front["license"] == "unknown"
    assert front["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert front["size_categories"] == ["n<1K"]
    assert "data-pruning" in front["tags"]
    size = sum(path.stat().st_size for path in (repository / "data").iterdir())
    assert front["dataset_info"]["download_size"] == size
    assert front["dataset_info"]["dataset_size"] == front["dataset_info"]["splits"][0]["num_bytes"]


def test_the_body_says_what_was_dropped_and_why(repository: Path, finished: FinishedOutput) -> None:
    """Counts, thresholds, the model and the input's name; no path of this machine."""
    _, body = card(repository)
    counts = finished.manifest["counts"]
    for label in ("Q1", "Q2", "Q3", "Q4"):
        assert any(line.startswith(f"| {label} ") and f"| {counts[label]} |" in line for line in body.splitlines())
    assert f"{counts['kept']} of {counts['scored']} samples" in body
    assert "`data.jsonl`" in body
    assert "`model`" in body
    assert finished.root not in body
    assert str(Path(finished.spec.input.paths[0]).parent) not in body
    assert "SFTTrainer" in body


def test_a_licence_is_taken_over(finished: FinishedOutput, tmp_path: Path) -> None:
    """By the name that the user gave."""
    export(finished.root, "hub", str(tmp_path), Options(license="cc-by-4.0"))
    assert card(tmp_path)[0]["license"] == "cc-by-4.0"


def test_cards_of_other_strategies_do_not_speak_of_quadrants(weighed: FinishedOutput, tmp_path: Path) -> None:
    """InfoBatch chose, and its weights must be used."""
    export(weighed.root, "hub", str(tmp_path), Options())
    _, body = card(tmp_path)
    assert "`infobatch`" in body
    assert "qtune.loss_weight" in body
    assert "kept whole" not in body


SPLITS = {"splits": [{"num_examples": 1}]}


def dataset_info(about: dict[str, Any]) -> dict[str, Any]:
    """Return `dataset_info` as it is read back from the front matter of a card."""
    info: dict[str, Any] = yaml.safe_load(front_matter(about | SPLITS, None))["dataset_info"]
    return info


TYPES: dict[str, pa.DataType] = {
    "null": pa.null(), "bool": pa.bool_(), "uint8": pa.uint8(), "half": pa.float16(), "single": pa.float32(),
    "time": pa.time64("us"), "day": pa.date32(), "moment": pa.timestamp("us", "UTC"), "span": pa.duration("ms"),
    "money": pa.decimal128(10, 2), "bytes": pa.binary(), "four bytes": pa.binary(4), "long text": pa.large_string(),
    "lists": pa.list_(pa.list_(pa.int64())), "long list": pa.large_list(pa.struct([("a", pa.string())])),
    "pair": pa.list_(pa.float32(), 2), "yes": pa.struct([("no", pa.struct([("null", pa.int8())]))]),
    "word": pa.dictionary(pa.int32(), pa.string()),
}  # fmt: skip


def test_features_of_any_type_are_those_that_datasets_infers() -> None:
    """Every type that can come out of Parquet, also under names that YAML takes for something else."""
    schema = pa.schema(TYPES)
    about = dataset_info({"features": named_features(schema)})
    assert Features._from_yaml_list(about["features"]) == Features.from_arrow_schema(schema)


def test_a_type_that_datasets_lacks_is_told(tmp_path: Path) -> None:
    """With the place of the column, also inside others."""
    schema = pa.schema({"a": pa.struct([("b", pa.map_(pa.string(), pa.int32()))])})
    with pytest.raises(DataError, match=r"column a\.b is of type map"):
        named_features(schema)


def test_yaml_reads_back_as_it_was() -> None:
    """Words that YAML would take for booleans, numbers, dates or comments are quoted."""
    value = {
        "no": "yes", "null": None, "n": [1, 2.5, True, "1", "1.0", "2026-01-31", "# x", "a: b", "- c", "", "é 🙂", "|"],
        "nested": [{"a": [], "b": {}}, {"c": [{"d": [[1], [2, [3]]]}]}], "quote": 'a "b" \\ c\nd',
        "~": "~", "@x": "`y`",
    }  # fmt: skip
    assert dataset_info(value) == value | SPLITS
