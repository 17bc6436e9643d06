"""vLLM with an engine process of its own and two tensor parallel workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from qtune_service.config import EngineSpec, ModelSpec
from tests.engine.engine_worker import EngineWorker, heads, process_id
from tests.engine.exactness import all_cases, difference, exact_all
from tests.processes import ENGINE, titled

EXACT = 1e-4  # nats
BEGUN_S, WOKEN_S = 2.0, 60.0


@pytest.fixture(scope="module")
def vllm_parallel(random_qwen2: Path) -> Iterator[EngineWorker]:
    """Run the random Qwen2 on vLLM in an engine process with two workers."""
    spec = EngineSpec(tensor_parallel_size=2, max_num_batched_tokens=96, cpu_kv_cache_bytes=1 << 27)
    worker = EngineWorker(ModelSpec(name=str(random_qwen2)), spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        assert worker.info
    yield worker
    worker.close()


def test_tensor_parallel_scores_are_exact(
    vllm_parallel: EngineWorker, vllm_qwen2: EngineWorker, random_qwen2: Path
) -> None:
    """Two tensor parallel workers reduce half of the vocabulary each, and are as near to the exact scores as one."""
    samples = all_cases(vllm_parallel.info.vocab_size)
    scores = vllm_parallel.score(samples)
    ways = vllm_parallel.call(heads)
    assert [way.partition(",")[0] for way in ways] == ["partial sums over 2 shards of the vocabulary"] * 2
    exact = exact_all(str(random_qwen2), 1500)
    error, error_of_one = difference(scores, exact), difference(vllm_qwen2.score(samples), exact)
    assert error < EXACT
    assert error < 1.5 * error_of_one


def test_who_waits_for_a_killed_engine_is_woken(vllm_parallel: EngineWorker) -> None:
    """A call that waits for an answer when the engine process is killed fails soon, and so do later ones."""
    samples = all_cases(vllm_parallel.info.vocab_size)
    (engine,) = (p for p in titled(ENGINE, [vllm_parallel.call(process_id)]) if "Core" in " ".join(p.cmdline()))
    engine.suspend()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(vllm_parallel.score, samples)
        time.sleep(BEGUN_S)
        assert not waiting.done()
        engine.kill()
        with pytest.raises(Exception, match=r"(?i)engine"):
            waiting.result(timeout=WOKEN_S)
    with pytest.raises(Exception, match=r"(?i)engine"):
        vllm_parallel.score(samples)
    psutil.wait_procs([engine], timeout=5)
