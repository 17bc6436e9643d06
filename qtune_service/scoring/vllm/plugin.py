"""The `vllm.general_plugins` entry point: one scoring architecture for every causal LM that vLLM knows.

vLLM calls `register` in each of its processes. For "Qwen2ForCausalLM" it adds "QTuneScorerQwen2ForCausalLM", as a
string that is resolved only when a model of that name is loaded (`adapter.__getattr__`), so an unrelated vLLM pays
some hundred dict entries and no import. Existing entries are not touched.

vLLM keeps what it learnt about a lazy class in a disk cache whose key holds neither the version of vLLM nor the base
class, so both are part of the class's name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from qtune_service.scoring.process_environment import PLUGIN_NAME

ARCHITECTURE_PREFIX = "QTuneScorer"
ADAPTER_MODULE = "qtune_service.scoring.vllm.pooling_model"
_CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")

logger = logging.getLogger(__name__)


def adapted_name(architecture: str) -> str:
    """Name under which the scoring variant of an architecture is registered."""
    return f"{ARCHITECTURE_PREFIX}{architecture}"


def register() -> None:
    """Register a scoring variant of each causal LM; safe to call again. Never raises: it runs in any vLLM process."""
    try:
        _register_all()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        # Another vLLM than the supported ones. VllmScorer refuses to start on it with a message of its own.
        logger.warning("%s did not register its scoring architectures: %s", PLUGIN_NAME, error)


def _register_all() -> None:
    from vllm import __version__
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in causal_architectures():
        name = adapted_name(architecture)
        ModelRegistry.register_model(name, f"{ADAPTER_MODULE}:{name}@{__version__}")
        if architecture in MODELS_CONFIG_MAP:  # settings that vLLM ties to an architecture's name (cache, dtype, ...)
            MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]


def causal_architectures() -> list[str]:
    """Text-generation architectures of the installed vLLM that are causal language models, sorted."""
    from vllm.model_executor.models import registry

    tables: tuple[Iterable[str], ...] = (
        registry._TEXT_GENERATION_MODELS,  # noqa: SLF001 - the only place that tells decoders from the rest without loading them
        registry._TRANSFORMERS_SUPPORTED_MODELS,  # noqa: SLF001
    )
    return sorted({name for table in tables for name in table if name.endswith(_CAUSAL_SUFFIXES)})
