"""What jobs may touch, from the settings: for the server, and for commands that work on its database."""

from __future__ import annotations

from qtune_service.server.jobs.policy import Policy
from qtune_service.server.settings import Settings


def owner_policy(settings: Settings) -> Policy:
    """The owner's word."""
    own = (settings.outputs, f"{settings.data_root}/outputs")
    return Policy(
        inputs=settings.allowed_inputs,
        outputs=tuple(dict.fromkeys((*own, *settings.allowed_outputs))),
        models=settings.allowed_models,
        remote_code=settings.allow_remote_code,
    )
