"""Make vLLM's requests beside its engine, and submit them.

`LLM.encode` and `LLMEngine.add_request` check, copy and hash each prompt in the thread that runs the model, which takes
as long as a GPU takes for a short prompt. Here one request of a call goes through vLLM's own checks, and the others are
copies of it with their own tokens. If the engine is in this process, its cache blocks are hashed as well. vLLM
allows this in another thread (`EngineCore.preprocess_add_request`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from qtune_service.scoring.scorer import Prompt, spans_of

Request: TypeAlias = tuple[Any, Any]
"""vLLM's EngineCoreRequest, and for an engine in this process what `preprocess_add_request` made of it."""


def make_requests(engine: Any, prompts: Sequence[Prompt], reads: Sequence[bool]) -> list[Request]:
    """Return the requests of the prompts with scored tokens. The id of a request is the index of its prompt.

    engine: vLLM's LLMEngine. reads: whether a prompt may read the prefix cache.
    """
    from msgspec.structs import replace
    from vllm import PoolingParams
    from vllm.inputs import tokens_input

    from qtune_service.scoring.vllm.pooling_model import SPANS_KEY, TASK

    core = getattr(engine.engine_core, "engine_core", None)  # an engine in this process
    spans = spans_of([prompt.positions for prompt in prompts])
    checked: Any = None
    requests: list[Request] = []
    for i, prompt in enumerate(prompts):
        if not len(prompt.positions):
            continue
        # Tokens after the last scored one are not needed.
        ids = prompt.input_ids[: prompt.positions[-1] + 1].tolist()
        params = PoolingParams(task=TASK, extra_kwargs={SPANS_KEY: spans[i]}, skip_reading_prefix_cache=not reads[i])
        if checked is None:
            tasks = engine.get_supported_tasks()
            checked = engine.input_processor.process_inputs(str(i), tokens_input(ids), params, tasks)
        request = replace(checked, request_id=str(i), prompt_token_ids=ids, pooling_params=params)
        engine.input_processor.assign_request_id(request)
        requests.append((request, core.preprocess_add_request(request) if core is not None else None))
    return requests


def submit(engine: Any, requests: Sequence[Request]) -> None:
    """Queue requests, in this order."""
    for request, preprocessed in requests:
        engine.output_processor.add_request(request, None, None, 0)
        if preprocessed is None:
            engine.engine_core.add_request(request)
        else:
            engine.engine_core.engine_core.add_request(*preprocessed)
