"""The dataset card of a pruned dataset: front matter that machines read, and what a reader of the hub wants to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qtune_service.export.yaml_text import to_yaml
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.data import QUADRANTS
from qtune_service.report.wording import count, number, percent
from qtune_service.storage.file_io import display

SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
    (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
TAGS = ("q-tuning", "data-pruning", "supervised-fine-tuning", "qtune-service")
MAX_SOURCES = 5
PAPER = "https://arxiv.org/abs/2509.23873"


def render_card(finished: FinishedOutput, about: Mapping[str, Any], license_name: str | None) -> str:
    """README.md of a repository whose data are data/train-*. about: `dataset_info`."""
    return f"---\n{to_yaml(_front_matter(about, license_name))}---\n\n" + "\n".join(_body(finished, about)) + "\n"


def _front_matter(about: Mapping[str, Any], license_name: str | None) -> dict[str, Any]:
    num_rows = about["splits"][0]["num_examples"]
    return {
        "license": license_name or "unknown",
        "task_categories": ["text-generation"],
        "tags": list(TAGS),
        "size_categories": [next((name for limit, name in SIZES if num_rows < limit), "n>1T")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": about,
    }


def _body(finished: FinishedOutput, about: Mapping[str, Any]) -> Iterator[str]:
    spec, counts = finished.spec, finished.manifest["counts"]
    sources = _sources(spec.input.paths)
    yield f"# {sources.replace('`', '')}, pruned for fine-tuning\n"
    yield (
        f"{count(counts['kept'])} of {count(counts['scored'])} samples ({percent(counts['kept'], counts['scored'])}) "
        f"of {sources}, chosen by qtune-service {finished.manifest['version']} for the model that scored them, "
        f"`{_model(spec.model.name)}`.\n"
    )
    yield from _method(finished)
    yield from _dropped(finished)
    yield from _columns(about)
    yield from _training(finished)


def _method(finished: FinishedOutput) -> Iterator[str]:
    prune, manifest = finished.prune, finished.manifest
    tokens, engine = manifest["tokens"], manifest["engine"]
    yield "## How it was made\n"
    if prune.strategy == "q_tuning":
        yield (
            f"Samples are placed by perplexity and predictive entropy under the model ([Q-Tuning]({PAPER})): of the "
            "four quadrants two are dropped, and in one the tokens that are hardest together with their neighbours "
            "are taken out of the loss.\n"
        )
    else:
        yield f"Samples were chosen by the strategy `{prune.strategy}`, not by quadrants.\n"
    yield "| | |\n|---|---|"
    yield f"| asked for | {prune.sample_keep_ratio:.2%} of the samples, {prune.token_keep_ratio:.0%} of pruned tokens |"
    yield f"| scored by | {engine['name']} {engine['version']}, {engine['dtype']} |"
    yield f"| trained tokens of kept samples | {count(tokens['before'])} -> {count(tokens['after'])} |"
    for name, value in manifest["thresholds"].items():
        yield f"| {name} | {number(float(value))} |"
    yield ""


def _dropped(finished: FinishedOutput) -> Iterator[str]:
    counts = finished.manifest["counts"]
    yield "## What was dropped, and why\n"
    yield "| quadrant | place | samples | fate |\n|---|---|---:|---|"
    by_quadrant = finished.prune.strategy == "q_tuning"
    for q in QUADRANTS:
        fate = q.fate if by_quadrant else "as the strategy chose"
        yield f"| {q.label} {q.name} | {q.place} | {count(counts[q.label])} | {fate} |"
    yield ""
    reasons = ", ".join(f"{name} {count(value)}" for name, value in finished.manifest["rejected_reasons"].items())
    yield (
        f"{count(counts['read'])} records were read; {count(counts['rejected'])} could not be used"
        f"{f' ({reasons})' if reasons else ''}; {count(counts['pruned'])} were dropped.\n"
    )


def _columns(about: Mapping[str, Any]) -> Iterator[str]:
    names = [feature["name"] for feature in about["features"]]
    yield "## Columns\n"
    yield (
        f"{', '.join(f'`{name}`' for name in names)}. `input_ids` are whole samples by the model's chat template; "
        "`labels` are the same with -100 where the loss ignores a token; `loss_mask` and `assistant_masks` are 1 "
        "where it does not. `qtune` tells each sample's perplexity, entropy (nats), quadrant and tokens removed.\n"
    )


def _training(finished: FinishedOutput) -> Iterator[str]:
    model = _model(finished.spec.model.name)
    yield "## How to train on it\n"
    yield "The tokens are those of the model's own tokenizer: train that model, or one that shares it.\n"
    yield "```python"
    yield 'data = load_dataset("USER/NAME", split="train")'
    yield f'SFTTrainer("{model}", args=SFTConfig(max_length=None), train_dataset=data).train()'
    yield "```"
    if finished.prune.strategy == "infobatch":
        yield "\nInfoBatch weighs samples: multiply each one's loss by `qtune.loss_weight`."


def _sources(paths: Sequence[str]) -> str:
    shown = [f"`{_last(path).replace('`', '')}`" for path in paths[:MAX_SOURCES]]
    return ", ".join(shown) + (f" and {len(paths) - MAX_SOURCES} more" if len(paths) > MAX_SOURCES else "")


def _model(name: str) -> str:
    """A hub id as it is; of a local folder its last name."""
    is_local = name.startswith(("/", ".", "~")) or "://" in name or name.count("/") > 1
    return _last(name) if is_local else name


def _last(path: str) -> str:
    return display(path).rstrip("/").rpartition("/")[2]
