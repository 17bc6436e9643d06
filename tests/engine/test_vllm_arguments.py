"""Arguments of vLLM on a real engine: those of the job, a length limit that memory allows, and quantized heads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import ModelError
from qtune_service.samples import Sample
from tests.engine.engine_worker import EngineWorker, engine_settings, score_with_quantized_head
from tests.engine.exactness import all_cases, difference, exact_all

LONG = 200_000
"""Length limit of a model whose attention cache, of 64 MiB, holds about 43,000 tokens."""
EXACT = 1e-4  # nats


@pytest.fixture(scope="module")
def long_model(random_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the random Qwen2 with a long context."""
    folder = tmp_path_factory.mktemp("long") / "model"
    shutil.copytree(random_qwen2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONG}))
    return folder


@pytest.fixture(scope="module")
def worker(long_model: Path) -> Iterator[EngineWorker]:
    """Run the long model on vLLM with arguments of the job and little memory."""
    sizes = EngineSpec(max_num_batched_tokens=96, cpu_kv_cache_bytes=1 << 26)
    engine = sizes.model_copy(update={"vllm": {"max_num_seqs": 7, "block_size": 64}})
    worker = EngineWorker(ModelSpec(name=str(long_model), max_model_len=LONG), engine)
    yield worker
    worker.close()


def test_arguments_of_the_job_reach_the_engine(worker: EngineWorker) -> None:
    """`engine.vllm` sets vLLM's own arguments, and scores stay exact."""
    assert worker.info
    settings = worker.call(engine_settings)
    assert (settings["max_num_seqs"], settings["block_size"]) == (7, 64)


def test_a_long_context_starts_where_memory_is_short(worker: EngineWorker, random_qwen2: Path) -> None:
    """A model whose own limit is over its attention cache starts with the limit that fits, and scores exactly."""
    assert 30_000 < worker.info.max_model_len < 50_000
    error = difference(worker.score(all_cases(1500)), exact_all(str(random_qwen2), 1500))
    assert error < EXACT


def test_a_valid_sample_over_the_cache_ends_the_job(worker: EngineWorker) -> None:
    """A sample that the model can read and this engine cannot hold is no reason to reject it."""
    length = worker.info.max_model_len + 1
    with pytest.raises(ModelError, match=f"{length:,} tokens"):
        worker.score([Sample(np.full(length, 9, np.int32), np.ones(length, np.int8))])


def test_a_quantized_head_is_scored_in_the_type_of_the_model(worker: EngineWorker, random_qwen2: Path) -> None:
    """A quantized head is refused by vLLM in the float32 of pooling models, and is used as it is."""
    assert worker.info
    refused, scores, head = worker.call(score_with_quantized_head, all_cases(1500))
    assert "only supported for an unquantized lm_head" in refused
    assert difference(scores, exact_all(str(random_qwen2), 1500)) < EXACT
    assert head
