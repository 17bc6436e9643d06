"""Engines under test, each started once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.scoring.scorer import Scorer
from tests.engine.engine_worker import EngineWorker
from tests.engine.exactness import CHUNK_TOKENS, MAX_MODEL_LEN, NAN_TOKEN

ONE_KERNEL = {"MKL_CBWR": "COMPATIBLE"}
"""MKL selects its kernels by the shape of a batch. On an AMD EPYC they differ by up to 1.2e-5 nats, which is a property
of MKL and not of the engine, so the reference engine is compared with itself under one kind of kernel."""
SMALL_CHUNKS = EngineSpec(max_num_batched_tokens=CHUNK_TOKENS, logits_bytes=1 << 20, cpu_kv_cache_bytes=1 << 27)
REFERENCE = SMALL_CHUNKS.model_copy(update={"name": "reference"})


@pytest.fixture(scope="session")
def random_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2 whose predictions are far from uniform, with one token of NaN embedding."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1500,  # no multiple of 64: vLLM pads the vocabulary, and must not count the padding
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[NAN_TOKEN] = float("nan")
    folder = tmp_path_factory.mktemp("qwen2")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_qwen2(random_qwen2: Path) -> Iterator[EngineWorker]:
    """Run the random Qwen2 on vLLM, in chunks, with prefix caching."""
    worker = EngineWorker(ModelSpec(name=str(random_qwen2)), SMALL_CHUNKS)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def vllm_stories(shared_dir: Path) -> Iterator[EngineWorker]:
    """Run a real tiny Llama on vLLM, in chunks, with prefix caching."""
    worker = EngineWorker(ModelSpec(name=str(shared_dir / "models/stories260K")), SMALL_CHUNKS)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def reference_qwen2(random_qwen2: Path) -> Iterator[EngineWorker]:
    """Run the random Qwen2 on the reference engine, in small batches."""
    worker = EngineWorker(ModelSpec(name=str(random_qwen2)), REFERENCE, ONE_KERNEL)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def reference_stories(shared_dir: Path) -> Scorer:
    """Run a real tiny Llama on the reference engine, in small batches."""
    from qtune_service.scoring.reference import ReferenceScorer

    return ReferenceScorer(ModelSpec(name=str(shared_dir / "models/stories260K")), SMALL_CHUNKS)


@pytest.fixture(params=["vllm_qwen2", "reference_qwen2"])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    """Each engine on the random Qwen2."""
    scorer: Scorer = request.getfixturevalue(request.param)
    return scorer


@pytest.fixture
def model_folder(request: pytest.FixtureRequest, random_qwen2: Path) -> Callable[[str], str]:
    """Folder of the model that a scorer fixture of the given name runs."""

    def folder(scorer_name: str) -> str:
        if scorer_name.endswith("stories"):
            shared: Path = request.getfixturevalue("shared_dir")
            return str(shared / "models/stories260K")
        return str(random_qwen2)

    return folder
