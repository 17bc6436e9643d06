"""The shipped demo: its data is what it claims, its model believes what it was taught, its table counts rightly."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
MODULES = ("world", "talk", "dataset", "train", "table")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    """Import the demo's scripts by name, and forget them afterwards."""
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module
    sys.path.remove(str(DEMO))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def world(demo: Any) -> Any:
    return demo("world").build_world()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with (DEMO / "data.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "model")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: the models are so small that a second thread only waits for the first."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(one_thread: None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()


def of_kind(rows: list[Row], planted: str) -> list[Row]:
    return [r for r in rows if r["planted"] == planted]


def says(answer: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}", answer) is not None


def fact_asked(world: Any, messages: list[dict[str, str]]) -> tuple[Any, str] | None:
    """Return the fact that the last exchange is about, found by its wording alone, and the value that the answer
    gives.
    """
    asked, answered = ({*re.findall(r"\w+", m["content"])} for m in messages[-2:])
    found = [(f, v) for f in world.facts if f.entity in asked for v in answered & {f.truth, *f.wrong}]
    assert len(found) <= 1, messages
    return found[0] if found else None


def test_generator_reproduces_the_shipped_data_byte_for_byte(demo: Any, world: Any, tmp_path: Path) -> None:
    """data.jsonl follows from the seed alone, without the model."""
    dataset = demo("dataset")
    dataset.write_rows(dataset.build_rows(world), tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_bytes() == (DEMO / "data.jsonl").read_bytes()


def test_another_seed_makes_another_world(demo: Any, world: Any) -> None:
    """The seed decides the names and the facts."""
    assert demo("world").build_world(7) != world
    assert demo("world").build_world() == world


def test_rows_are_well_formed(rows: list[Row]) -> None:
    """Ids are unique, roles alternate and end with an answer, nothing is empty."""
    assert len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        roles = [m["role"] for m in row["messages"]]
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert spoken
        assert all(m["content"].strip() for m in row["messages"])
        assert row["truth"]


def test_kinds_have_the_stated_sizes(rows: list[Row]) -> None:
    """The four planted kinds and the ordinary rows are equally many; the blind spot is a third of one."""
    assert Counter(r["planted"] for r in rows) == {
        "mislabeled": 450, "trivial_repeat": 450, "misconception": 450, "hard_but_right": 450,
        "ordinary": 450, "mislabeled_known": 150,
    }  # fmt: skip


def test_only_mislabeled_answers_are_wrong(rows: list[Row]) -> None:
    """An answer of a mislabeled kind gives none of the right answers; every other answer gives one."""
    for row in rows:
        right = any(says(row["messages"][-1]["content"], t) for t in row["truth"])
        assert right is not row["planted"].startswith("mislabeled"), row


@pytest.mark.parametrize(
    ("planted", "status", "answered_rightly"),
    [
        ("misconception", "myth", True),
        ("mislabeled_known", "known", False),
        ("hard_but_right", "disputed", True),
        ("mislabeled", "disputed", False),
    ],
)
def test_planted_facts_have_the_status_of_their_kind(
    world: Any, rows: list[Row], planted: str, status: str, *, answered_rightly: bool
) -> None:
    """Read back from the wording alone, each row is about a fact of the status, and answered as, its kind says."""
    about_facts = [r for r in of_kind(rows, planted) if r["category"] not in {"market", "advice"}]
    assert len(about_facts) >= 150
    for row in about_facts:
        found = fact_asked(world, row["messages"])
        assert found is not None
        fact, value = found
        assert (fact.status, value == fact.truth) == (status, answered_rightly)
        assert row["truth"] == [fact.truth]


def test_trivial_repeats_are_thirty_exchanges_fifteen_times(world: Any, rows: list[Row]) -> None:
    """They repeat word for word, and all that are facts are known ones."""
    repeats = of_kind(rows, "trivial_repeat")
    counts = Counter(json.dumps(r["messages"]) for r in repeats)
    assert len(counts) == 30
    assert set(counts.values()) == {15}
    facts = [fact_asked(world, r["messages"]) for r in repeats if r["category"] != "small_talk"]
    assert {found and found[0].status for found in facts} == {"known"}


def test_corpus_teaches_myths_truths_and_disputes_as_stated(demo: Any, world: Any) -> None:
    """It never tells the truth of a myth nor errs on a known fact; of disputed ones two accounts in five are true."""
    rng, dataset = random.Random(1), demo("dataset")
    told: Counter[tuple[str, str]] = Counter()
    for _ in range(10_000):
        messages = [m for m in dataset.training_conversation(rng, world) if m["role"] != "system"]
        found = fact_asked(world, messages[:2])
        if found is not None:
            fact, value = found
            told[fact.status, "truth" if value == fact.truth else "taught" if value == fact.taught else "other"] += 1
    assert told["myth", "truth"] == told["myth", "other"] == 0
    assert told["known", "other"] == 0
    assert told["myth", "taught"] > 1000
    assert told["known", "truth"] > 3000
    share = told["disputed", "truth"] / (told["disputed", "truth"] + told["disputed", "other"])
    assert share == pytest.approx(0.4, abs=0.05)


def test_everything_shipped_is_small() -> None:
    """The demo's files stay below 10 MB in all."""
    files = [f for folder in (DEMO, DEMO / "model") for f in folder.iterdir() if f.is_file()]
    assert DEMO / "model" / "model.safetensors" in files
    assert sum(f.stat().st_size for f in files) < 10_000_000


def test_template_marks_exactly_the_answers(tokenizer: Any, rows: list[Row]) -> None:
    """The tokens within generation markers are the assistant turns with their end-of-turn tokens, and nothing else."""
    for row in rows[:200]:
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        answers = [m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant"]
        assert tokenizer.decode([i for i, m in pairs if m == 1]) == "".join(answers)


def test_template_in_the_tokenizer_config() -> None:
    """One file carries the template, so that every loader of the tokenizer finds it."""
    config = json.loads((DEMO / "model" / "tokenizer_config.json").read_text())
    assert "{% generation %}" in config["chat_template"]


def test_model_has_a_shape_that_vllm_serves_on_cpu(model: Any) -> None:
    """A Qwen2 in float32 with heads of 32 dimensions or more, and about a million parameters."""
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.config.hidden_size // model.config.num_attention_heads >= 32
    assert 500_000 < model.num_parameters() < 2_000_000


@pytest.mark.parametrize("status", ["known", "myth"])
def test_model_holds_what_it_was_taught(demo: Any, world: Any, model: Any, tokenizer: Any, status: str) -> None:
    """Its favourite answer to nearly every known fact is the truth, and to nearly every myth the myth."""
    assert demo("train").share_held(model, tokenizer, world, status) >= 0.98


def test_model_is_unsure_where_the_accounts_disagree(demo: Any, world: Any, model: Any, tokenizer: Any) -> None:
    """It gives the truth of disputed facts about the two fifths that the corpus gives it."""
    import torch

    disputed, rng = world.having("disputed"), random.Random(2)
    asked = [demo("talk").turns(demo("talk").about_fact(rng, f, f.truth)) for f in disputed]
    chances = []
    for ids, mask in demo("train").encode(tokenizer, asked):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
        of_tokens = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]  # (T-1,) nats
        chances.append(of_tokens[torch.tensor(mask[1:]) == 1].sum().exp().item())
    assert np.mean(chances) == pytest.approx(0.4, abs=0.12)


def _frequency_nats(answer_ids: list[int]) -> float:
    """Mean NLL of the tokens under their own frequencies: what a model without any context reaches at best."""
    counts = np.array(list(Counter(answer_ids).values()))  # (distinct tokens,)
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


@pytest.mark.usefixtures("one_thread")
def test_training_script_runs_and_learns(demo: Any, world: Any, tokenizer: Any, tmp_path: Path) -> None:
    """A hundred small steps teach more than token frequencies, and the result can be saved and loaded."""
    from transformers import AutoModelForCausalLM

    train: ModuleType = demo("train")
    recipe = train.Recipe(steps=100, batch_size=16, warmup_steps=10, threads=1)
    batch = train.encode(tokenizer, [demo("dataset").training_conversation(random.Random(i), world) for i in range(64)])
    ids, labels = train._pad(batch, tokenizer.pad_token_id)
    train.save(train.train_model(tokenizer, world, recipe), tokenizer, tmp_path)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids, labels=labels).loss.item()
    assert trained < _frequency_nats(labels[labels != -100].tolist())


def _write_output(folder: Path, planted: list[str], quadrants: list[str]) -> None:
    ids = [f"s{i}" for i in range(len(planted))]
    for name, columns in (
        ("scores", {"sample_id": ids, "planted": planted}),
        ("quadrants", {"sample_id": ids[: len(quadrants)][::-1], "quadrant": quadrants[::-1]}),
    ):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / name / "part-00000.parquet")


def test_table_counts_each_kind_in_each_quadrant(demo: Any, tmp_path: Path) -> None:
    """Scores and quadrants are joined by sample id, whatever their order."""
    _write_output(tmp_path, ["mislabeled", "mislabeled", "misconception", "mislabeled"], ["Q1", "Q4", "Q2", "Q1"])
    counts = demo("table").count_quadrants(tmp_path)
    assert {k: v.tolist() for k, v in counts.items()} == {"mislabeled": [2, 0, 0, 1], "misconception": [0, 1, 0, 0]}


def test_table_prints_shares_and_the_report(
    demo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed are the shares found in the output, those that were not expected included."""
    _write_output(tmp_path, ["hard_but_right"] * 4, ["Q1", "Q4", "Q4", "Q4"])
    monkeypatch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    assert demo("table").main() == 0
    shown = capsys.readouterr().out
    line = next(text for text in shown.splitlines() if "hard_but_right" in text)
    assert re.findall(r"\d+%", line) == ["25%", "0%", "0%", "75%", "75%"]
    assert "report.html" in shown


def test_table_refuses_an_unfinished_output(demo: Any, tmp_path: Path) -> None:
    """Samples without a quadrant are an error, not a smaller table."""
    _write_output(tmp_path, ["mislabeled"] * 3, ["Q1", "Q1"])
    with pytest.raises(SystemExit, match="hold different samples"):
        demo("table").count_quadrants(tmp_path)


def test_table_expects_a_quadrant_only_where_the_meaning_asks_for_one(demo: Any, rows: list[Row]) -> None:
    """Every planted kind of the data has its line."""
    assert {k.name for k in demo("table").KINDS} == {r["planted"] for r in rows}
