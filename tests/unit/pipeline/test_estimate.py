"""pipeline/estimate.py, cost.py and `qtune estimate`: near to what was measured, and honest about the rest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from benchmarks.scoring import material, measure
from qtune_service.cli import app
from qtune_service.config import ModelSpec
from qtune_service.errors import DataError, ModelError, SpecError
from qtune_service.ingest.jsonl import RecordProblem
from qtune_service.ingest.reader import first_records
from qtune_service.pipeline.cost import Lengths, ModelCost, cost_of
from qtune_service.pipeline.estimate import Device, Estimate, Hardware, Size, estimate, size_of
from qtune_service.spec_files import parse_spec
from qtune_service.tokenize.encoded_batch import Encoded
from qtune_service.tokenize.encoder import Encoder
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, write_jsonl

NUM_DEMO = len(DEMO_DATA.read_text().splitlines())
QWEN_05B = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936,
    "tie_word_embeddings": True, "max_position_embeddings": 32_768, "dtype": "bfloat16",
}  # fmt: skip


def model_of(folder: Path, **config: Any) -> ModelSpec:
    """Return a model by its configuration alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSpec(name=str(folder))


def look(path: object, count: int = 500, samples: int | None = None, **more: Any) -> Size:
    """Read a file with the demo model's tokenizer."""
    body = {"input": {"paths": [str(path)], **more}, "model": {"name": DEMO_MODEL}, "output": {"path": "nowhere"}}
    return size_of(parse_spec(body), count, samples)


def typed(*arguments: object) -> Result:
    """Type the command."""
    return CliRunner().invoke(app, ["estimate", *map(str, arguments)])


def test_a_measured_run_on_a_cpu(tmp_path: Path) -> None:
    """Estimate the run of docs/reference/performance.md within 6%: 16 samples of 0.5B's shape, 8,832 tokens, 59%
    trained, at 76% of a peak of 155 to 161 GFLOP/s gave 130 tokens/s, end to end.
    """
    page = (REPO / "docs" / "reference" / "performance.md").read_text(encoding="utf-8")
    assert "| `qtune prune`, end to end | 130 | 0.89 | 76% |" in page
    assert "(16 samples, 8,832 tokens)" in page
    size = Size(16, is_exact=True, lengths=Lengths([552], [round(0.59 * 552)]))
    found = estimate(
        size, cost_of(model_of(tmp_path, **QWEN_05B)), Hardware(Device(0.158, 24), share=0.76), keep_ratio=0.5
    )
    assert found.tokens == 8832
    assert found.tokens / (found.hours.likely * 3600) == pytest.approx(130, rel=0.06)
    assert found.weight_bytes == pytest.approx(494e6 * 2, rel=0.01), "0.49 billion weights"


def test_it_counts_as_the_benchmark_does(tmp_path: Path) -> None:
    """Which has a count of its own, for the shares of the peak in docs/reference/performance.md."""
    spec = parse_spec(
        {"input": {"paths": [str(DEMO_DATA)]}, "model": {"name": DEMO_MODEL}, "output": {"path": "nowhere"}}
    )
    encoder = Encoder(spec.model, spec.input, max_model_len=512, vocab_size=1024)
    records = [one.record for one in first_records(spec.input, 50) if not isinstance(one.record, RecordProblem)]
    outcomes = encoder.encode_batch(records, "messages")
    samples = [outcome.sample for outcome in outcomes if isinstance(outcome, Encoded)]
    assert len(samples) == 50
    cost = cost_of(model_of(tmp_path, **QWEN_05B))
    size = look(DEMO_DATA, 50, 50)
    mean, _ = size.lengths.flops_per_sample(cost)
    counted = measure.flops_needed(material.SHAPES["0.5b"], samples)
    assert mean * 50 == pytest.approx(counted, rel=1e-9)


def test_the_data_are_encoded_as_a_job_does() -> None:
    """Of a file that is read whole all is exact: number, tokens, trained tokens."""
    size = look(DEMO_DATA, NUM_DEMO + 1)
    assert (size.samples, size.is_exact, len(size.lengths.tokens)) == (NUM_DEMO, True, NUM_DEMO)
    assert 0 < sum(size.lengths.trained) < sum(size.lengths.tokens)


def test_the_number_of_records_is_told_by_size(tmp_path: Path) -> None:
    """Of plain JSON lines nearly; of Parquet exactly; of compressed files not at all, unless it is given."""
    by_size = look(DEMO_DATA, 300)
    assert not by_size.is_exact
    assert by_size.samples == pytest.approx(NUM_DEMO, rel=0.05)
    rows = [json.loads(line) for line in DEMO_DATA.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist([{"messages": row["messages"]} for row in rows]), tmp_path / "a.parquet")
    counted = look(tmp_path / "a.parquet", 100)
    assert (counted.samples, counted.is_exact) == (NUM_DEMO, True)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(DEMO_DATA.read_bytes()))
    with pytest.raises(SpecError, match="is compressed"):
        look(packed, 100)
    assert look(packed, 100, samples=77).samples == 77
    assert look(DEMO_DATA, 300, limit=400).samples == 400


def test_rejected_records_are_taken_off(tmp_path: Path) -> None:
    """In proportion, and it is said."""
    good = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes, it is."}]}
    bad = {"messages": [{"role": "user", "content": "alone"}]}
    size = look(write_jsonl(tmp_path / "a.jsonl", [good, bad, good, bad]), 100, samples=1000)
    found = estimate(size, ModelCost(body=1e9), Hardware(Device(100, 80)), keep_ratio=0.5)
    assert found.samples == 500
    assert any("2 of the first 4 records are rejected" in warning for warning in found.warnings)
    with pytest.raises(DataError, match="can be used"):
        look(write_jsonl(tmp_path / "b.jsonl", [bad]))


def ten_hours(**hardware: Any) -> Estimate:
    """Return a job of ten GPU hours at half of a peak."""
    model = ModelCost(body=0.5e12 * 3600, held=hardware.pop("held", 0))
    size = Size(10, is_exact=True, lengths=Lengths([1], [1]))
    return estimate(size, model, Hardware(Device(2, 80), **hardware), keep_ratio=0.5)


def test_times_are_ranges_by_what_is_known_of_the_share() -> None:
    """Assumed: wide, and it is said so. Measured: narrow. More GPUs: less time, the same hours and cost."""
    assumed, measured = ten_hours(), ten_hours(share=0.5, number=4, price_per_hour=3)
    assert assumed.gpu_hours.likely == measured.gpu_hours.likely == pytest.approx(10)
    assert assumed.gpu_hours.low == pytest.approx(5 / 0.6)
    assert assumed.gpu_hours.high == pytest.approx(5 / 0.35)
    assert measured.gpu_hours.high == pytest.approx(5 / 0.425)
    assert measured.hours.likely == pytest.approx(2.5)
    assert measured.gpus == 4
    assert measured.cost is not None
    assert measured.cost.likely == pytest.approx(30)
    assert "assumed" in assumed.warnings[0]
    assert measured.warnings == []


def test_large_models_take_several_gpus() -> None:
    """As many as hold the weights; a number that leaves some idle is told."""
    found = ten_hours(held=50e9, number=3, share=0.5)
    assert (found.gpus_per_model, found.gpus) == (2, 2)
    assert found.hours.likely == pytest.approx(5)
    assert "leave 1 of 3 idle" in found.warnings[0]
    assert ten_hours(held=50e9, share=0.5).gpus == 2


def test_experts_count_as_far_as_tokens_meet_them(tmp_path: Path) -> None:
    """Mixtral-8x7B's sizes: 12.9 billion weights met, 46.7 billion held, by its authors' count."""
    config = {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 32_000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    cost = cost_of(model_of(tmp_path, **config))
    assert cost.held == pytest.approx(46.7e9, rel=0.003)
    assert cost.body + 2 * cost.head == pytest.approx(12.9e9, rel=0.003)


def test_sizes_of_another_kind_are_refused(tmp_path: Path) -> None:
    """No guess: --params is asked for."""
    with pytest.raises(ModelError, match="not of the usual kind") as caught:
        cost_of(model_of(tmp_path, model_type="gpt2", n_embd=64, n_layer=2, n_head=2, vocab_size=99))
    assert "--params" in caught.value.hint


def test_the_command_with_numbers_alone() -> None:
    """The billion samples of docs/reference/performance.md: 3,900 GPU hours for 7B, 61 on 64 H100."""
    done = typed("--params", 7e9, "--samples", 10**9, "--tokens", 500, "--gpus", 64, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["gpu_hours"]["likely"] == pytest.approx(3900, rel=0.02)
    assert found["hours"]["likely"] == pytest.approx(61, rel=0.02)


def test_the_command_with_data_and_a_model() -> None:
    """A page for people, with a range for each time and what is uncertain."""
    done = typed(DEMO_DATA, "--model", DEMO_MODEL, "--gpus", 2, "--price", 2.5)
    assert done.exit_code == 0, done.output
    for part in ("about 2,", "time on 2 GPUs", " to ", "cost", "scores/", "! The share of the peak is assumed"):
        assert part in done.stdout


def test_the_command_with_a_job_file(tmp_path: Path) -> None:
    """Its data, model, limit and ratio."""
    spec = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 700}, "model": {"name": DEMO_MODEL},
        "prune": {"sample_keep_ratio": 0.25}, "output": {"path": "out"},
    }  # fmt: skip
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec))
    found = json.loads(typed(path, "--json").stdout)
    assert found["samples"] == 700
    assert found["needs"]["product_bytes"] == pytest.approx(found["tokens"] * 1.4)
    assert found["weight_bytes"] == pytest.approx(0.92e6 * 4, rel=0.02), "the demo model is in float32"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "neither data nor numbers"),
        (("--samples", 5, "--tokens", 5), "no model given"),
        (("a.jsonl",), "add --model"),
        (("--params", "7e9"), "give --samples and --tokens"),
        (("--params", "7e9", "--samples", 5, "--tokens", 5, "--gpu", "abacus"), "--peak-tflops"),
    ],
)
def test_what_is_missing_is_told(arguments: tuple[object, ...], said: str) -> None:
    """Exit code 2 and what to add."""
    done = typed(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
