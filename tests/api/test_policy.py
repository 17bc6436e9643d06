"""server/jobs/policy.py: jobs touch what the owner allowed, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import NotAllowedError
from qtune_service.server.jobs.policy import Policy
from qtune_service.spec_files import parse_spec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders that are allowed, one that is not, and a link from the one into the other."""
    for name in ("data", "out", "models/small", "secret"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    return tmp_path


@pytest.fixture
def policy(root: Path) -> Policy:
    """Return a policy with everything that an administrator may set."""
    return Policy(
        inputs=(f"{root}/data", "s3://corpus/sft"),
        outputs=(f"{root}/out", "s3://results/"),
        models=(f"{root}/models", "Qwen/", "meta-llama/Llama-3.1-8B"),
    )


def spec(root: Path, **more: Any) -> Any:
    """Return a spec that is allowed, with changes: `field__name=value`."""
    body: dict[str, Any] = {
        "input": {"paths": [f"{root}/data/a.jsonl"]},
        "model": {"name": f"{root}/models/small"},
        "output": {"path": f"{root}/out/1"},
        "prune": {},
        "engine": {},
    }
    for name, value in more.items():
        part, _, field = name.partition("__")
        if field:
            body[part][field] = value
        else:
            body[part] = value
    return parse_spec(body)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input__paths": ["{root}/data/*.jsonl"]},
        {"input__paths": ["{root}/data"]},
        {"input__paths": ["s3://corpus/sft/part-1.parquet", "s3://corpus/sft"]},
        {"output__path": "s3://results/a"},
        {"model__name": "Qwen/Qwen2.5-0.5B"},
        {"model__name": "meta-llama/Llama-3.1-8B"},
        {"input__chat_template": "trl:qwen3"},
        {"input__chat_template": "{{% for m in messages %}}{{{{ m }}}}{{% endfor %}}"},
        {"from_scores": "{root}/out/0"},
    ],
)
def test_what_is_allowed(policy: Policy, root: Path, changes: dict[str, Any]) -> None:
    """Folders with what lies in them, prefixes, ids."""
    policy.check(spec(root, **_filled(changes, root)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"input__paths": ["{root}/secret/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["{root}/data/../secret/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["{root}/data/link/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["{root}/data-else/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["{root}/*/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["{root}/data/*/../../secret/a"]}, "input.paths"),
        ({"input__paths": ["data/a.jsonl"]}, "input.paths"),
        ({"input__paths": ["/etc/passwd"]}, "input.paths"),
        ({"input__paths": ["s3://corpus/sft-private/a"]}, "input.paths"),
        ({"input__paths": ["s3://corpus/sft/../private/a"]}, "input.paths"),
        ({"input__paths": ["s3://corpus/sft/%2e%2e/private/a"]}, "input.paths"),
        ({"input__paths": ["s3://corpus/sft/a?endpoint_override=10.0.0.1"]}, "input.paths"),
        ({"input__paths": ["s3://key:secret@corpus/sft/a"]}, "input.paths"),
        ({"input__paths": ["http://169.254.169.254/latest"]}, "input.paths"),
        ({"input__paths": ["file:///etc/passwd"]}, "input.paths"),
        ({"output__path": "{root}/data/x"}, "output.path"),
        ({"output__path": "{root}/out/../secret"}, "output.path"),
        ({"from_scores": "{root}/secret"}, "from_scores"),
        ({"model__name": "{root}/models/link"}, "model.name"),
        ({"model__name": "Qwenish/x"}, "model.name"),
        ({"model__name": "Qwen/../../secret"}, "model.name"),
        ({"model__name": "meta-llama/Llama-3.1-8B-Instruct"}, "model.name"),
        ({"model__tokenizer": "somebody/else"}, "model.tokenizer"),
        ({"model__trust_remote_code": True}, "model.trust_remote_code"),
        ({"prune__quadrant_rule": "os:system"}, "prune.quadrant_rule"),
        ({"engine__name": "os:system"}, "engine.name"),
        ({"input__chat_template": "/etc/passwd"}, "input.chat_template"),
        ({"input__chat_template": "./trl:qwen3"}, "input.chat_template"),
    ],
)
def test_what_is_not(policy: Policy, root: Path, changes: dict[str, Any], field: str) -> None:
    """The field is named, and what may be used instead."""
    with pytest.raises(NotAllowedError, match=field) as caught:
        policy.check(spec(root, **_filled(changes, root)))
    assert caught.value.hint


HUB_ROOTS = (
    "hf://datasets/org/",
    "hf://datasets/other/one",
    "hf://datasets/other/two@v1",
    "hf://datasets/other/3/data",
)


@pytest.mark.parametrize(
    "path",
    [
        "hf://datasets/org/any",
        "hf://datasets/org/any@main/data/*.jsonl",
        "hf://datasets/org/any@a%2Fb",
        "hf://datasets/org/any@0123456789012345678901234567890123456789/a b?.jsonl",
        "hf://datasets/other/one/x",
        "hf://datasets/other/two@v1/x",
        "hf://datasets/other/3/data",
        "hf://datasets/other/3@v2/data/*.jsonl",
    ],
)
def test_datasets_of_the_hub_that_are_allowed(root: Path, path: str) -> None:
    """An organization, a dataset, a revision or a folder of it."""
    policy = Policy((*HUB_ROOTS,), (f"{root}/out",), (f"{root}/models",))
    policy.check(spec(root, input__paths=[path]))


@pytest.mark.parametrize(
    "path",
    [
        "hf://datasets/organization/any",
        "hf://datasets/other/one-more",
        "hf://datasets/other/two",
        "hf://datasets/other/two@v2",
        "hf://datasets/other/3",
        "hf://datasets/other/3/data-private/x",
        "hf://datasets/other/3/d*/x",
        "hf://datasets/org/../other/x",
        "hf://datasets/org/any@refs/pr/1",
        "hf://datasets/org/any@refs%2Fpr%2F1/x",
        "hf://datasets/org/any@refs/convert/parquet",
        "hf://datasets/org/any/../x",
        "hf://org/model",
        "hf://spaces/org/any",
        "hf://buckets/org/any",
    ],
)
def test_datasets_of_the_hub_that_are_not(root: Path, path: str) -> None:
    """Other datasets and kinds, and references that other users write. Without an entry no dataset is allowed."""
    for roots in (HUB_ROOTS, (f"{root}/data", "s3://corpus/sft")):
        policy = Policy((*roots,), (f"{root}/out",), (f"{root}/models",))
        with pytest.raises(NotAllowedError, match=r"input\.paths"):
            policy.check(spec(root, input__paths=[path]))


def test_all_datasets_of_the_hub(root: Path) -> None:
    """The prefix alone allows every dataset, and no other kind."""
    policy = Policy(("hf://datasets/",), (f"{root}/out",), (f"{root}/models",))
    policy.check(spec(root, input__paths=["hf://datasets/org/any"]))
    with pytest.raises(NotAllowedError):
        policy.check(spec(root, input__paths=["hf://org/any"]))


def test_code_where_the_owner_allows_it(policy: Policy, root: Path) -> None:
    """Rules, engines and models' own code."""
    open_policy = Policy(policy.inputs, policy.outputs, policy.models, remote_code=True)
    open_policy.check(
        spec(root, model__trust_remote_code=True, prune__quadrant_rule="my:rule", engine__name="my:engine")
    )


def test_nothing_is_allowed_by_default(root: Path) -> None:
    """An owner who said nothing."""
    with pytest.raises(NotAllowedError, match="The administrator allows: nothing"):
        Policy().check(spec(root))


def _filled(changes: dict[str, Any], root: Path) -> dict[str, Any]:
    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(one) for one in value]
        return value.format(root=root) if isinstance(value, str) else value

    return {name: fill(value) for name, value in changes.items()}


@pytest.mark.parametrize(
    "vllm",
    [
        {"load_format": "pt"},
        {"model_loader_extra_config": {"a": 1}},
        {"download_dir": "/etc"},
        {"worker_cls": "os.system"},
        {"scheduler_cls": "os.system"},
        {"hf_config_path": "/etc"},
        {"hf_overrides": {"rope_theta": 1}},
        {"reasoning_parser_plugin": "/etc/passwd"},
        {"log_config_file": "/etc/passwd"},
        {"otlp_traces_endpoint": "http://10.0.0.1"},
        {"kv_transfer_config": {"kv_connector": "x"}},
        {"compilation_config": {"cache_dir": "/etc"}},
        {"quantization": "../../etc/passwd"},
        {"quantization": {"a": "/etc"}},
        {"kv_cache_dtype": ["fp8"]},
        {"an_argument_of_a_later_version": 1},
    ],
)
def test_arguments_of_vllm_that_run_code_or_name_files_are_refused(policy: Policy, root: Path, vllm: Any) -> None:
    """Of vLLM's arguments a server takes a list of names with plain values, unless jobs may run code."""
    with pytest.raises(NotAllowedError, match=r"engine\.vllm"):
        policy.check(spec(root, engine__vllm=vllm))
    replace(policy, remote_code=True).check(spec(root, engine__vllm=vllm))


def test_plain_arguments_of_vllm_are_allowed(policy: Policy, root: Path) -> None:
    """A user of a server may quantise the model and choose how it is spread over GPUs."""
    vllm = {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "pipeline_parallel_size": 2, "enforce_eager": True}
    policy.check(spec(root, engine__vllm={**vllm, "cpu_offload_gb": 1.5, "enable_expert_parallel": True}))
