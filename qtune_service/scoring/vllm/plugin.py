"""Entry point of `vllm.general_plugins`: register a scoring architecture for every causal LM of vLLM.

vLLM calls `register` in each of its processes. For "Qwen2ForCausalLM" it adds "QTuneScorerQwen2ForCausalLM" as a string
that is resolved when such a model is loaded (`pooling_model.__getattr__`). So an unrelated vLLM process pays a few
hundred dict entries and no import. Existing entries are not changed.

vLLM caches facts about a lazy class on disk, under a key without the version of vLLM and the base class. So both are
part of the class name.
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
    """Return the name of an architecture's scoring variant."""
    return f"{ARCHITECTURE_PREFIX}{architecture}"


def register() -> None:
    """Register a scoring variant of each causal LM. Idempotent. Never raises, since it runs in any vLLM process."""
    try:
        _register_all()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        # An unsupported vLLM version, which VllmScorer rejects with its own message.
        logger.warning("%s did not register its scoring architectures: %s", PLUGIN_NAME, error)


def _register_all() -> None:
    from vllm import __version__
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry

    for architecture in causal_architectures():
        name = adapted_name(architecture)
        ModelRegistry.register_model(name, f"{ADAPTER_MODULE}:{name}@{__version__}")
        if architecture in MODELS_CONFIG_MAP:  # settings by architecture name (cache, dtype, ...)
            MODELS_CONFIG_MAP[name] = MODELS_CONFIG_MAP[architecture]


def causal_architectures() -> list[str]:
    """Return the sorted causal language model architectures of the installed vLLM."""
    from vllm.model_executor.models import registry

    tables: tuple[Iterable[str], ...] = (
        registry._TEXT_GENERATION_MODELS,  # noqa: SLF001 - the only list of decoders that loads nothing
        registry._TRANSFORMERS_SUPPORTED_MODELS,  # noqa: SLF001
    )
    return sorted({name for table in tables for name in table if name.endswith(_CAUSAL_SUFFIXES)})
