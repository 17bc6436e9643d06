"""scoring/vllm/arguments.py and vllm_arguments.py: what vLLM is started with, and what a job may add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError, SpecError
from qtune_service.samples import Sample
from qtune_service.scoring.choose_engine import choose_engine
from qtune_service.scoring.model_config import read_checkpoint
from qtune_service.scoring.vllm.arguments import (
    AUTO_FIT,
    Device,
    check_fits,
    check_names,
    engine_arguments,
    installed_names,
    run_arguments,
)
from qtune_service.spec_files import parse_spec
from qtune_service.vllm_arguments import MACHINE, OWN, SERVER
from tests.jobs import DEMO_MODEL

GIB = 1 << 30
CPU, SMALL_GPU = Device(is_cpu=True), Device(is_cpu=False, memory_bytes=24 * GIB)


def built(device: Device, *, max_model_len: int | None = None, **engine: Any) -> dict[str, Any]:
    """Return the arguments for the demo model."""
    model = ModelSpec(name=DEMO_MODEL, max_model_len=max_model_len)
    spec = EngineSpec.model_validate(engine)
    return engine_arguments(model, spec, read_checkpoint(model), device, "module.Calls")


def spec_of(**vllm: Any) -> Any:
    """Return a job with these arguments."""
    body = {"input": {"paths": ["d"]}, "model": {"name": "m"}, "output": {"path": "o"}, "engine": {"vllm": vllm}}
    return parse_spec(body)


def test_arguments_of_the_job_reach_vllm() -> None:
    """A job's arguments are added to those of scoring, win over defaults for the device, and lose to none."""
    given = {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "block_size": 64, "max_num_seqs": 17}
    arguments = built(CPU, vllm={**given, "hf_overrides": {"rope_theta": 5.0}})
    assert {name: arguments[name] for name in given} == given
    assert arguments["hf_overrides"]["rope_theta"] == 5.0
    assert arguments["hf_overrides"]["architectures"][0].startswith("QTuneScorer")
    assert (arguments["runner"], arguments["pooler_config"]) == ("pooling", {"task": "token_classify"})


@pytest.mark.parametrize(
    ("gib", "logits_bytes"), [(24, GIB // 4), (45, GIB // 4), (79, GIB), (94, GIB), (139, 2 * GIB)]
)
def test_large_cards_compute_larger_blocks_of_logits(gib: int, logits_bytes: int) -> None:
    """Unless the job sets `logits_bytes`, it grows with the memory of the GPU."""
    card = Device(is_cpu=False, memory_bytes=gib * GIB)
    assert built(card)["additional_config"]["qtune"]["logits_bytes"] == logits_bytes
    assert built(card, logits_bytes=1 << 21)["additional_config"]["qtune"]["logits_bytes"] == 1 << 21


def test_gpus_capture_no_graphs_and_keep_a_float32_head() -> None:
    """On a GPU no CUDA graphs are captured, and the head is vLLM's; a job may set either."""
    arguments = built(SMALL_GPU)
    assert arguments["compilation_config"] == {"cudagraph_mode": "NONE"}
    assert "head_dtype" not in arguments["hf_overrides"]
    assert not {"enforce_eager", "block_size", "kv_cache_memory_bytes"} & set(arguments)
    mine = built(SMALL_GPU, vllm={"compilation_config": {"cudagraph_mode": "PIECEWISE", "mode": 3}})
    assert mine["compilation_config"] == {"cudagraph_mode": "PIECEWISE", "mode": 3}
    assert "compilation_config" not in built(CPU)
    assert built(CPU)["hf_overrides"]["head_dtype"] == "model"


def test_a_model_own_limit_is_fitted_to_memory_and_a_jobs_limit_is_not() -> None:
    """The model's own length limit shrinks to the attention cache. A lower one of the job is a requirement."""
    own = read_checkpoint(ModelSpec(name=DEMO_MODEL)).max_model_len
    assert own is not None
    assert built(SMALL_GPU, max_model_len=own)["max_model_len"] == AUTO_FIT
    assert built(SMALL_GPU)["max_model_len"] == AUTO_FIT
    assert built(SMALL_GPU, max_model_len=own - 1)["max_model_len"] == own - 1


def test_a_sample_that_does_not_fit_is_not_rejected() -> None:
    """A sample between the cache's limit and the job's ends the job with the remedy, since it is a valid sample."""
    sample = Sample(np.zeros(300, np.int32), np.ones(300, np.int8))
    check_fits([sample], 300, 512)
    check_fits([sample], 100, 200)  # over the job's own limit, too: rejected by the caller
    with pytest.raises(ModelError, match=r"300 tokens.* holds 256") as caught:
        check_fits([sample], 256, 512)
    assert "max_model_len to 256" in caught.value.hint


def test_steps_are_filled_with_short_samples() -> None:
    """Short samples run in more than 256 a step, as far as their buffers allow. A job's own number wins."""
    assert run_arguments(EngineSpec(), 4000, 4096) == {}
    assert run_arguments(EngineSpec(), 40, 4096) == {"max_num_seqs": 614}
    assert run_arguments(EngineSpec(), 2, 4096) == {"max_num_seqs": 2048}
    assert run_arguments(EngineSpec(), 2, 131072) == {"max_num_seqs": 512}  # 64M ids in all
    assert run_arguments(EngineSpec(max_num_batched_tokens=8192), 40, 4096) == {"max_num_seqs": 307}
    assert run_arguments(EngineSpec(name="reference"), 2, 4096) == {}
    assert built(CPU, max_num_batched_tokens=64, vllm={"max_num_seqs": 614})["max_num_seqs"] == 64


def test_unknown_names_are_refused_with_the_nearest() -> None:
    """A typing mistake is found in the installed version's own list, without importing vLLM."""
    check_names(EngineSpec(vllm={"quantization": "fp8"}))
    with pytest.raises(SpecError, match="no engine argument 'quantisation'") as caught:
        check_names(EngineSpec(vllm={"quantisation": "fp8"}))
    assert "Did you mean quantization?" in caught.value.hint
    assert set(OWN) | MACHINE | SERVER <= installed_names()
    assert not MACHINE & set(OWN)
    assert not SERVER & set(OWN)


@pytest.mark.parametrize(
    ("vllm", "told"),
    [
        ({"runner": "generate"}, "vllm.runner"),
        ({"worker_extension_cls": "a.B"}, "vllm.worker_extension_cls"),
        ({"tensor_parallel_size": 2}, "engine.tensor_parallel_size"),
        ({"trust_remote_code": True}, "model.trust_remote_code"),
        ({"hf_token": "hf_x"}, "HF_TOKEN"),
        ({"data_parallel_size": 2}, "engine.num_actors"),
        ({"hf_overrides": {"architectures": ["X"]}}, "vllm.hf_overrides.architectures"),
        ({"hf_overrides": "x"}, "must be an object"),
        ({"distributed_executor_backend": "external_launcher"}, "one of mp, ray, uni"),
        ({"pipeline_parallel_size": 0}, "from 1 to 1024"),
        ({"pipeline_parallel_size": True}, "from 1 to 1024"),
        ({"max_num_seqs": "many"}, "must be a number"),
        ({"load_format": "dummy"}, "random weights"),
    ],
)
def test_what_would_break_scoring_is_refused_with_a_reason(vllm: dict[str, Any], told: str) -> None:
    """Arguments that scoring sets, or that have a field of their own, are refused when the job file is read."""
    with pytest.raises(SpecError, match=told):
        spec_of(**vllm)


def test_arguments_need_vllm(tmp_path: Any) -> None:
    """Arguments are never dropped silently: the reference engine refuses them, and so does `auto` without vLLM."""
    with pytest.raises(SpecError, match="'reference'"):
        parse_spec({**spec_of().model_dump(), "engine": {"name": "reference", "vllm": {"quantization": "fp8"}}})
    tmp_path.joinpath("config.json").write_text('{"model_type": "gpt2", "architectures": ["OddForCausalLM"]}')
    with pytest.raises(EngineError, match=r"engine\.vllm sets quantization"):
        choose_engine(ModelSpec(name=str(tmp_path)), EngineSpec(vllm={"quantization": "fp8"}))


def test_arguments_define_a_job_where_they_move_scores() -> None:
    """Quantisation and overrides make another job. Parallelism and memory do not, and unknown names do."""
    plain = spec_of().defining()
    machine = {"pipeline_parallel_size": 2, "max_num_seqs": 8, "load_format": "runai_streamer", "enforce_eager": True}
    assert spec_of(**machine).defining() == plain
    for name, value in {"quantization": "fp8", "kv_cache_dtype": "fp8", "hf_overrides": {"a": 1}, "new": 1}.items():
        assert spec_of(**machine, **{name: value}).defining() == {**plain, "engine": {"vllm": {name: value}}}
